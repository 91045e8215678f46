package ends

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// Harm is what an owner of an end does to it beside the relay. When Do returns nil, the
// end stores messages again.
type Harm struct {
	Name string
	// Remade is true where the end begins another life: positions and ids begin again.
	Remade bool
	// Kept is how many messages of a key can outlive one that the harm has destroyed: the
	// others are destroyed with all behind them.
	Kept int
	// Alarm is a regular expression of the relay's log line that names the loss.
	Alarm string
	// Count is one for the number of lost messages in such a line: its group n. Groups first
	// and part are the first of them, and the partition. "" where nothing counts them.
	Count string
	Do    func(ctx context.Context) error
}

// Values of Harm.Kept.
const (
	KeepsAll = -1          // the harm destroys nothing
	KeepsAny = math.MaxInt // the messages have no order
)

// Harmed is an end whose owner deletes, creates and trims it.
type Harmed interface {
	End
	// Name is the name of the stream, topic, queue or file in the relay's log.
	Name() string
	Harms() []Harm
	// Cure returns the keys of a source whose operator allows it to go on after a harm.
	Cure() map[string]any
}

// kept is how many messages a trim leaves.
const kept = 3

const again = `created again|lost the position|before the position|group is gone`

func cured(keys map[string]any) map[string]any {
	keys["on_recreated"] = "restart"
	return keys
}

func (e natsEnd) Name() string         { return e.name }
func (e natsEnd) Cure() map[string]any { return cured(e.Source()) }

func (e natsEnd) Harms() []Harm {
	const span = `\bmessages=(?P<n>\d+) first_sequence=(?P<first>\d+)`
	return []Harm{
		{"stream deleted and created", true, 0, again, "", func(ctx context.Context) error {
			return e.with(func(js jetstream.JetStream) error {
				if err := js.DeleteStream(ctx, e.name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
					return err
				}
				_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: e.name, Subjects: []string{e.name + ".>"}})
				return err
			})
		}},
		{"stream trimmed", false, kept, `lost`, span, func(ctx context.Context) error {
			return e.with(func(js jetstream.JetStream) error {
				cfg := jetstream.StreamConfig{Name: e.name, Subjects: []string{e.name + ".>"}, MaxMsgs: kept}
				if _, err := js.UpdateStream(ctx, cfg); err != nil {
					return err
				}
				cfg.MaxMsgs = -1
				_, err := js.UpdateStream(ctx, cfg)
				return err
			})
		}},
		{"stream purged", false, kept, `lost`, span, func(ctx context.Context) error {
			return e.with(func(js jetstream.JetStream) error {
				stream, err := js.Stream(ctx, e.name)
				if err != nil {
					return err
				}
				return stream.Purge(ctx, jetstream.WithPurgeKeep(kept))
			})
		}},
	}
}

func (e kafkaEnd) Name() string         { return e.topic }
func (e kafkaEnd) Cure() map[string]any { return cured(e.Source()) }

func (e kafkaEnd) Harms() []Harm {
	const span = `\bpartition=(?P<part>\d+) position=(?P<first>\d+) oldest=\d+ messages=(?P<n>\d+)`
	client := &kafka.Client{Addr: kafka.TCP(e.broker), Transport: &kafka.Transport{}}
	return []Harm{
		{"topic deleted and created", true, 0, again, "", func(ctx context.Context) error {
			res, err := client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{e.topic}})
			if err == nil {
				err = res.Errors[e.topic]
			}
			if err != nil && !errors.Is(err, kafka.UnknownTopicOrPartition) {
				return err
			}
			return retry(ctx, e.create) // the broker deletes in the background
		}},
		{"records deleted", false, kept, `lost`, span, func(ctx context.Context) error {
			registerDeleteRecords()
			req := &deleteRecordsRequest{TimeoutMs: 10_000, Topics: []deleteRecordsTopic{{Name: e.topic}}}
			for partition := range kafkaPartitions {
				conn, err := kafka.DialLeader(ctx, "tcp", e.broker, e.topic, partition)
				if err != nil {
					return err
				}
				first, last, err := conn.ReadOffsets()
				if err = errors.Join(err, conn.Close()); err != nil {
					return err
				}
				req.Topics[0].Partitions = append(req.Topics[0].Partitions, deleteRecordsPartition{int32(partition), max(first, last-kept)})
			}
			res, err := client.Transport.RoundTrip(ctx, client.Addr, req)
			if err != nil {
				return err
			}
			for _, p := range res.(*deleteRecordsResponse).Topics[0].Partitions {
				if p.ErrorCode != 0 {
					return fmt.Errorf("delete records of partition %d: %w", p.Index, kafka.Error(p.ErrorCode))
				}
			}
			return nil
		}},
	}
}

// The client does not have DeleteRecords.
type (
	deleteRecordsRequest struct {
		Topics    []deleteRecordsTopic `kafka:"min=v0,max=v1"`
		TimeoutMs int32                `kafka:"min=v0,max=v1"`
	}
	deleteRecordsTopic struct {
		Name       string                   `kafka:"min=v0,max=v1"`
		Partitions []deleteRecordsPartition `kafka:"min=v0,max=v1"`
	}
	deleteRecordsPartition struct {
		Index  int32 `kafka:"min=v0,max=v1"`
		Offset int64 `kafka:"min=v0,max=v1"`
	}
	deleteRecordsResponse struct {
		ThrottleTimeMs int32                        `kafka:"min=v0,max=v1"`
		Topics         []deleteRecordsTopicResponse `kafka:"min=v0,max=v1"`
	}
	deleteRecordsTopicResponse struct {
		Name       string                           `kafka:"min=v0,max=v1"`
		Partitions []deleteRecordsPartitionResponse `kafka:"min=v0,max=v1"`
	}
	deleteRecordsPartitionResponse struct {
		Index        int32 `kafka:"min=v0,max=v1"`
		LowWatermark int64 `kafka:"min=v0,max=v1"`
		ErrorCode    int16 `kafka:"min=v0,max=v1"`
	}
)

var registerDeleteRecords = sync.OnceFunc(func() { protocol.Register(&deleteRecordsRequest{}, &deleteRecordsResponse{}) })

func (*deleteRecordsRequest) ApiKey() protocol.ApiKey  { return protocol.DeleteRecords } //nolint:staticcheck // the interface's name
func (*deleteRecordsResponse) ApiKey() protocol.ApiKey { return protocol.DeleteRecords } //nolint:staticcheck // the interface's name

// Broker implements [protocol.BrokerMessage]: the tests' cluster has one broker.
func (*deleteRecordsRequest) Broker(c protocol.Cluster) (protocol.Broker, error) {
	return c.Brokers[c.Controller], nil
}

func (e redisEnd) Name() string         { return e.stream }
func (e redisEnd) Cure() map[string]any { return cured(e.Source()) }

func (e redisEnd) Harms() []Harm {
	return []Harm{
		{"stream deleted", true, 0, again + `|entries are lost`, "", func(ctx context.Context) error {
			return e.client.Del(ctx, e.stream).Err()
		}},
		{"group destroyed", false, KeepsAll, again + `|entries are lost`, "", func(ctx context.Context) error {
			groups, err := e.client.XInfoGroups(ctx, e.stream).Result()
			for _, g := range groups {
				err = errors.Join(err, e.client.XGroupDestroy(ctx, e.stream, g.Name).Err())
			}
			return err
		}},
		{"stream trimmed", false, kept, `entries are lost`, `\bentries=(?P<n>\d+)`, func(ctx context.Context) error {
			return e.client.XTrimMaxLen(ctx, e.stream, kept).Err()
		}},
	}
}

func (e *rabbitEnd) Name() string { return e.name }

func (e *rabbitEnd) Cure() map[string]any {
	if e.queueType == amqp.QueueTypeStream {
		return cured(e.Source())
	}
	return e.Source()
}

func (e *rabbitEnd) Harms() []Harm {
	// The broker gives a queue's messages to both relays while one is frozen past its lease.
	alarm, kept := `queue was deleted`, KeepsAny
	if e.queueType == amqp.QueueTypeStream {
		alarm, kept = again, 0
	}
	return []Harm{{e.queueType + " deleted and declared", true, kept, alarm, "", func(ctx context.Context) error {
		return retry(ctx, func(context.Context) error {
			err := e.with(func(ch *amqp.Channel) error {
				_, err := ch.QueueDelete(e.name, false, false, false)
				return err
			})
			return errors.Join(err, e.declare())
		})
	}}}
}

func (e *fileEnd) Name() string { return e.path }

// Cure gives the new file a name of its own, as the documentation asks for.
func (e *fileEnd) Cure() map[string]any {
	e.lives++
	path := fmt.Sprintf("%s.%d", e.first, e.lives)
	if err := os.Rename(e.path, path); err == nil {
		e.path = path
	}
	return e.Source()
}

func (e *fileEnd) Harms() []Harm {
	const changed = `was (renamed|replaced)|is gone`
	return []Harm{
		{"file replaced", true, 0, changed, "", func(context.Context) error {
			return errors.Join(os.Rename(e.path, fmt.Sprintf("%s.old%d", e.first, e.lives)), os.WriteFile(e.path, nil, 0o666))
		}},
		{"file cut", true, 0, changed, "", func(context.Context) error { return os.Truncate(e.path, 0) }},
	}
}
