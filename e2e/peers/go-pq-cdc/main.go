// Go-pq-cdc is go-pq-cdc-kafka with the settings of its own benchmark. Its
// addresses are in PEERS_ variables.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	cdc "github.com/Trendyol/go-pq-cdc-kafka"
	"github.com/Trendyol/go-pq-cdc-kafka/config"
	cdcconfig "github.com/Trendyol/go-pq-cdc/config"
	"github.com/Trendyol/go-pq-cdc/pq/publication"
	"github.com/Trendyol/go-pq-cdc/pq/slot"
	"github.com/segmentio/kafka-go"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "go-pq-cdc:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	port, err := strconv.Atoi(os.Getenv("PEERS_PORT"))
	if err != nil {
		return err
	}
	poll, err := strconv.Atoi(os.Getenv("PEERS_POLL"))
	if err != nil {
		return err
	}
	name := os.Getenv("PEERS_NAME")
	connector, err := cdc.NewConnector(ctx, config.Connector{
		CDC: cdcconfig.Config{
			Host: os.Getenv("PEERS_HOST"), Port: port, Username: "postgres", Password: "postgres", Database: name,
			Publication: publication.Config{
				Name: name, Operations: publication.Operations{publication.OperationInsert},
				Tables: publication.Tables{{Name: "bench", Schema: "public", ReplicaIdentity: publication.ReplicaIdentityDefault}},
			},
			Slot:   slot.Config{Name: name, SlotActivityCheckerInterval: 3000},
			Metric: cdcconfig.MetricConfig{Port: 18089},
			Logger: cdcconfig.LoggerConfig{LogLevel: slog.LevelWarn},
		},
		Kafka: config.Kafka{
			TableTopicMapping:           map[string]string{"public.bench": os.Getenv("PEERS_TOPIC")},
			Brokers:                     []string{os.Getenv("PEERS_KAFKA")},
			RequiredAcks:                -1, // of all replicas; the default is 1
			ProducerBatchSize:           10_000,
			ProducerBatchTickerDuration: time.Duration(poll) * time.Millisecond,
		},
	}, handle)
	if err != nil {
		return err
	}
	defer connector.Close()
	connector.Start(ctx)
	return nil
}

func handle(m *cdc.Message) []kafka.Message {
	if !m.Type.IsInsert() {
		return nil
	}
	value, err := json.Marshal(m.NewData)
	if err != nil {
		panic(err)
	}
	id, ok := m.NewData["id"].(int64)
	if !ok {
		panic("the id is no bigint")
	}
	return []kafka.Message{{Key: strconv.AppendInt(nil, id, 10), Value: value}}
}
