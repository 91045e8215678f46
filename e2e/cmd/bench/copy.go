package main

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/jackc/pgx/v5/pgxpool"
)

// copyCommand is a command of its own, for measurements that start each program. It
// copies rows of the outbox "bench" into a Kafka topic.
const copyCommand = "copy-kafka"

func copyKafka(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: bench %s ROWS TOPIC", copyCommand)
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
