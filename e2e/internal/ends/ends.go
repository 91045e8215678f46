// Package ends is the far side of a pipeline as its own plain client sees it. It
// reads the messages of a relay's sink and writes messages for a relay's source.
// Nothing of the relay is linked here, so that no mistake can hide on both sides.
package ends

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
)

// Record is one message at a far end.
type Record struct {
	ID   string // what receivers drop duplicates by
	Key  string
	Body []byte
	// Foreign is true for a producer that is no relay. Then the ID does not travel where
	// a relay puts its ids.
	Foreign bool `db:"-"`
}

// End is one destination, origin, or both: a stream, a topic, a queue, a file.
type End interface {
	// Sink and Source return the keys with which a pipeline writes to the end
	// and reads from it, without a prefix. Source returns nil where there is none.
	Sink() map[string]any
	Source() map[string]any
	// Arrived returns everything that has arrived, in order of arrival.
	Arrived(ctx context.Context) ([]Record, error)
	// Produce writes records in order; nil means that all are there for good.
	// After an error the same records may be produced again.
	Produce(ctx context.Context, records []Record) error
	Close()
}

// Kind is what differs from backend to backend.
type Kind struct {
	Name   string // as in sink_type
	Source string // as in source_type, empty where there is none
	Binary string
	Server string // the server behind it in package brokers, empty where there is none
	// Exact is true where no duplicate may arrive, whichever process is killed.
	Exact bool
	// MaxNote is the largest text of a row that fits in one message.
	MaxNote int
	New     func(ctx context.Context, env Env) (End, error)
}

// Env is where an end is to be made.
type Env struct {
	Name    string                                     // unique
	Dir     string                                     // for files
	Server  *brokers.Server                            // of Kind.Server
	Migrate func(ctx context.Context, db string) error // installs the relay's schema in another database
}

const mib = 1 << 20

// Kinds returns every backend.
func Kinds() []Kind {
	return []Kind{
		{Name: "nats", Source: "nats", Binary: "relay-nats", Server: "nats", Exact: true, MaxNote: mib, New: newNATS},
		{Name: "kafka", Source: "kafka", Binary: "relay-kafka", Server: "kafka", Exact: true, MaxNote: mib, New: newKafka},
		{Name: "redis", Source: "redis", Binary: "relay-redis", Server: "redis", Exact: true, MaxNote: mib, New: newRedis},
		// A message of SQS is 1 MiB with its envelope and attributes.
		{Name: "sqs", Source: "sqs", Binary: "relay-sqs", Server: "sqs", Exact: true, MaxNote: 1_000_000, New: newSQS},
		{Name: "rabbitmq", Source: "rabbitmq", Binary: "relay-rabbitmq", Server: "rabbitmq", MaxNote: mib, New: newRabbitMQ},
		{Name: "webhook", Source: "webhook", Binary: "relay-webhook", MaxNote: mib, New: newWebhook},
		{Name: "stdout", Source: "stdin", Binary: "relay-stdout", Exact: true, MaxNote: mib, New: newFile},
		{Name: "pg-inbox", Binary: "relay-pginbox", Server: "pgold", Exact: true, MaxNote: mib, New: newInbox},
	}
}

// RabbitMQStream returns the origin that RabbitMQ keeps as a stream. Where it is made again
// it differs from a queue, and nowhere else.
func RabbitMQStream() Kind {
	return Kind{Name: "rabbitmq_stream", Source: "rabbitmq", Binary: "relay-rabbitmq", Server: "rabbitmq", New: newRabbitMQStream}
}

// Servers lists the servers that tests of the backends need: theirs, and
// PostgreSQL in its oldest and newest version.
func Servers(kinds []Kind) []string {
	names := []string{"pg18", "pgold"}
	for _, k := range kinds {
		if k.Server != "" {
			names = append(names, k.Server)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// retry repeats do until it succeeds or ctx ends.
func retry(ctx context.Context, do func(ctx context.Context) error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := do(try)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}
