// Watermill is a forwarder of the Watermill library: from an outbox in PostgreSQL to
// Kafka, as its own documentation sets it up. Its addresses are in PEERS_ variables.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/jackc/pgx/v5/pgxpool"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "watermill:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	poll, err := strconv.Atoi(os.Getenv("PEERS_POLL"))
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, os.Getenv("PEERS_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	logger := watermill.NewSlogLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	// The batch and the interval are larger and shorter than the defaults of 100 and 1 s.
	subscriber, err := sql.NewSubscriber(sql.BeginnerFromPgx(pool), sql.SubscriberConfig{
		ConsumerGroup:    "peers",
		SchemaAdapter:    sql.DefaultPostgreSQLSchema{SubscribeBatchSize: 1000},
		OffsetsAdapter:   sql.DefaultPostgreSQLOffsetsAdapter{},
		PollInterval:     time.Duration(poll) * time.Millisecond,
		InitializeSchema: true,
	}, logger)
	if err != nil {
		return err
	}
	config := kafka.DefaultSaramaSyncPublisherConfig()
	config.Producer.RequiredAcks = -1 // of all replicas
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{
		Brokers: []string{os.Getenv("PEERS_KAFKA")}, Marshaler: kafka.DefaultMarshaler{}, OverwriteSaramaConfig: config,
	}, logger)
	if err != nil {
		return err
	}
	f, err := forwarder.NewForwarder(subscriber, publisher, logger, forwarder.Config{ForwarderTopic: "outbox"})
	if err != nil {
		return err
	}
	return f.Run(ctx)
}
