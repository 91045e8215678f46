package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5/pgxpool"
)

// copyCommand is a command of its own: one copy is one process, as a relay is. Its name
// is followed by the drain, the rows and the database, and it prints messages a second.
const copyCommand = "copy"

// copyMemory is what Go may use in a copy, in bytes, before it collects garbage. The process
// then has 57 MiB, as a relay's does. With 64 MiB here it had 72, and less to collect than any
// relay may leave.
const copyMemory = 48 << 20

// copyRun starts a copy and returns its rate.
func (b *bench) copyRun(ctx context.Context, d drain, n int) (rate float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, self, copyCommand, d.name, strconv.Itoa(n), b.url)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(string(out), &rate)
	return rate, err
}

func runCopy(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: bench %s DRAIN ROWS DATABASE", copyCommand)
	}
	all := drains()
	at := slices.IndexFunc(all, func(d drain) bool { return d.name == args[0] })
	if at < 0 {
		return fmt.Errorf("there is no drain %s", args[0])
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	b := &bench{url: args[2], rows: n}
	if b.pool, err = pgxpool.New(ctx, b.url); err != nil {
		return err
	}
	defer b.pool.Close()
	t, err := all[at].target(ctx, b, n)
	if err != nil {
		return err
	}
	defer t.close()

	b.loaded = nil         // a target may have needed it to fill a stream
	debug.SetGCPercent(-1) // collect when all of the limit is used
	debug.SetMemoryLimit(copyMemory)
	debug.FreeOSMemory()
	if err := b.pool.Ping(ctx); err != nil {
		return err
	}
	rate, err := timed(n, func() error { return t.copy(ctx) })
	fmt.Println(rate)
	return err
}

// copyKafkaCommand copies rows of the outbox "bench" into a Kafka topic that exists, for
// measurements that start each program.
const copyKafkaCommand = "copy-kafka"

func copyKafka(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: bench %s ROWS TOPIC", copyKafkaCommand)
	}
	rows, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	broker, err := endpoint("RELAY_TEST_KAFKA_BROKERS")
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, os.Getenv("RELAY_TEST_DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	writer := kafkaWriter(broker, args[1])
	b := bench{pool: pool}
	if err := b.copying(rows, kafkaSend(writer))(ctx); err != nil {
		return err
	}
	return writer.Close()
}
