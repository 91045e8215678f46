package ends

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
)

type natsEnd struct{ url, name string }

func newNATS(ctx context.Context, env Env) (End, error) {
	e := natsEnd{env.Server.URL, env.Name}
	return e, e.with(func(js jetstream.JetStream) error {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: e.name, Subjects: []string{e.name + ".>"}})
		return err
	})
}

func (e natsEnd) with(do func(jetstream.JetStream) error) error {
	nc, err := nats.Connect(e.url, nats.MaxReconnects(0))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	return do(js)
}

func (e natsEnd) Sink() map[string]any {
	return map[string]any{"url": e.url, "stream": e.name, "subject": e.name + ".{op}"}
}

func (e natsEnd) Source() map[string]any {
	return map[string]any{"url": e.url, "stream": e.name, "consumer": "e2e", "ack_wait": "3s"}
}

func (e natsEnd) Arrived(ctx context.Context) (records []Record, err error) {
	err = e.with(func(js jetstream.JetStream) error {
		stream, err := js.Stream(ctx, e.name)
		if err != nil {
			return err
		}
		last := stream.CachedInfo().State.LastSeq
		consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy})
		if err != nil {
			return err
		}
		most := max(1, min(500, (32<<20)/(1+stream.CachedInfo().State.Bytes/max(1, stream.CachedInfo().State.Msgs))))
		for seq := uint64(0); seq < last; {
			// The server disconnects a client that is sent too much at once.
			batch, err := consumer.Fetch(int(min(most, last-seq)), jetstream.FetchMaxWait(5*time.Second))
			if err != nil {
				return err
			}
			before := seq
			for m := range batch.Messages() {
				meta, err := m.Metadata()
				if err != nil {
					return err
				}
				seq = meta.Sequence.Stream
				records = append(records, Record{ID: m.Headers().Get(nats.MsgIdHdr), Key: m.Headers().Get("Pgtrickle-Key"), Body: m.Data()})
			}
			if seq == before {
				return fmt.Errorf("read %d of %d messages: %w", seq, last, batch.Error())
			}
		}
		return nil
	})
	return records, err
}

func (e natsEnd) Produce(ctx context.Context, records []Record) error {
	return retry(ctx, func(ctx context.Context) error {
		return e.with(func(js jetstream.JetStream) error {
			for _, r := range records {
				m := &nats.Msg{Subject: e.name + ".made", Data: r.Body, Header: nats.Header{}}
				m.Header.Set(nats.MsgIdHdr, r.ID)
				if _, err := js.PublishMsg(ctx, m); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func (natsEnd) Close() {}

// CreateStream makes a stream of that name that takes all subjects below it.
func CreateStream(ctx context.Context, url, name string) error {
	_, err := newNATS(ctx, Env{Name: name, Server: &brokers.Server{URL: url}})
	return err
}

// Count returns the number of messages in a stream.
func Count(ctx context.Context, url, name string) (n uint64, err error) {
	err = natsEnd{url, name}.with(func(js jetstream.JetStream) error {
		stream, err := js.Stream(ctx, name)
		if err == nil {
			n = stream.CachedInfo().State.Msgs
		}
		return err
	})
	return n, err
}
