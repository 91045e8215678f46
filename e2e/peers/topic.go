package main

import (
	"context"
	"regexp"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
)

// number finds the row's number in a message, whatever the format.
var number = regexp.MustCompile(`"id": ?(\d+)`)

func (j *job) reader() *kafka.Reader {
	return kafka.NewReader(kafka.ReaderConfig{
		Brokers: []string{j.b.broker}, Topic: j.topic, Partition: 0, MinBytes: 1, MaxBytes: 8 << 20, MaxWait: time.Second,
	})
}

// follow calls arrived with the number of each row as it arrives.
func (j *job) follow(ctx context.Context, arrived func(int)) {
	r := j.reader()
	defer r.Close()
	for {
		m, err := r.ReadMessage(ctx)
		if err != nil {
			return
		}
		if found := number.FindSubmatch(m.Value); found != nil {
			if n, err := strconv.Atoi(string(found[1])); err == nil {
				arrived(n)
			}
		}
	}
}

// readAll reads the topic to its end. It returns how many of rows 1 to n are there, and
// how many messages there are.
func (j *job) readAll(ctx context.Context, n int) (seen, total int, err error) {
	end, err := j.end(ctx)
	if err != nil {
		return 0, 0, err
	}
	ctx, stop := context.WithTimeout(ctx, 2*time.Minute)
	defer stop()
	rows := make([]bool, n+1)
	j.follow(ctx, func(row int) {
		if total++; row <= n && !rows[row] {
			rows[row] = true
			seen++
		}
		if total == end {
			stop()
		}
	})
	if total < end {
		return 0, 0, ctx.Err()
	}
	return seen, total, nil
}
