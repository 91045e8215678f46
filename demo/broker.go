package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// broker is a NATS server in this process.
type broker struct {
	server *server.Server
	nc     *nats.Conn
	js     jetstream.JetStream
}

func startBroker(_ context.Context, dir string) (*broker, error) {
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true,
	})
	if err != nil {
		return nil, fmt.Errorf("start NATS: %w", err)
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		return nil, errors.New("start NATS: not ready after 10 s")
	}
	b := &broker{server: s}
	if b.nc, err = nats.Connect(s.ClientURL()); err == nil {
		b.js, err = jetstream.New(b.nc)
	}
	if err != nil {
		b.stop()
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	return b, nil
}

func (b *broker) stop() {
	if b.nc != nil {
		b.nc.Close()
	}
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

// read calls each for the messages of the stream from sequence number first to last.
// A last of 0 is the current end of the stream.
func (b *broker) read(ctx context.Context, stream string, first, last uint64, each func(jetstream.Msg) error) error {
	s, err := b.js.Stream(ctx, stream)
	for errors.Is(err, jetstream.ErrStreamNotFound) && sleep(ctx, 20*time.Millisecond) == nil { // the relay creates it
		s, err = b.js.Stream(ctx, stream)
	}
	if err != nil {
		return err
	}
	if last == 0 {
		last = s.CachedInfo().State.LastSeq
	}
	if last < first {
		return nil
	}
	consumer, err := b.js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: first,
	})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		if err := each(m); err != nil {
			return err
		}
		if meta, err := m.Metadata(); err != nil || meta.Sequence.Stream >= last {
			return err
		}
	}
}
