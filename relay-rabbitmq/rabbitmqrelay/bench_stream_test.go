package rabbitmqrelay

import (
	"bytes"
	"context"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// BenchmarkStream reads and acknowledges a stream of messages of 4 KiB, and reports the
// processor time of this process for one of them:
//
//	go test -run - -bench Stream -benchtime 5x
func BenchmarkStream(b *testing.B) {
	const count = 20_000
	broker := endpoint(b)
	s := newStream(b, broker)
	body := bytes.Repeat([]byte("x"), 4096)
	var last *amqp.DeferredConfirmation
	for range count {
		var err error
		if last, err = s.channel.PublishWithDeferredConfirm("", s.queue, false, false, amqp.Publishing{Body: body}); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := last.WaitContext(b.Context()); err != nil {
		b.Fatal(err)
	}
	var spent time.Duration
	for b.Loop() {
		_, _ = s.channel.QueueDelete(s.offsets, false, false, false)
		src := s.open(b, broker, "")
		before := processorTime(b)
		for read := 0; read < count; {
			batch, err := src.Receive(context.Background(), 1000)
			if err != nil {
				b.Fatal(err)
			}
			read += len(batch)
			if err := src.Ack(context.Background(), batch); err != nil {
				b.Fatal(err)
			}
		}
		spent += processorTime(b) - before
		_ = src.Close()
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N*count), "cpu-ns/msg")
}

func processorTime(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
