package pginboxrelay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/inbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// sink is an inbox with a pool of its own.
type sink struct {
	*inbox.Sink
	pool    *pgxpool.Pool
	timeout time.Duration
}

func newSink(ctx context.Context, env relay.Env, cfg sinkConfig) (*sink, error) {
	poolConfig, err := cfg.pool(env)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return nil, fmt.Errorf("open pool of remote inbox: %w", err)
	}

	in, err := inbox.Open(ctx, pool, inbox.Config{
		Schema: cfg.Schema, Table: cfg.Table, Source: env.Pipeline, Logger: env.Logger,
		Columns: inbox.Columns{
			ID: cfg.ID, Payload: cfg.Payload, EventType: cfg.EventType, Source: cfg.Source,
			AggregateID: cfg.AggregateID, ReceivedAt: cfg.ReceivedAt, TraceID: cfg.TraceID,
		},
	})
	if err != nil {
		pool.Close()
		if wrong, ok := errors.AsType[*relaynet.WrongPeerError](err); ok {
			err = relay.Fatal(fmt.Errorf("connect to the remote inbox: %w", wrong))
		}
		if cure := relaynet.PostgresTLSCure(err); cure != "" {
			err = relay.Fatal(fmt.Errorf("connect to the remote inbox: %w; %s", relaynet.PostgresCause(err), cure))
		}
		return nil, relaynet.PostgresCause(err)
	}
	if weak := relaynet.UnverifiedPostgres(&poolConfig.ConnConfig.Config); weak != "" {
		env.Logger.WarnContext(ctx, "PostgreSQL server is not verified",
			"key", "pg_inbox_url", "problem", weak, "cure", "set sslmode=verify-full")
	}
	return &sink{Sink: in, pool: pool, timeout: cfg.ConfirmTimeout.D()}, nil
}

// Publish implements [relay.Sink]: that of the inbox, in bounded time.
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	bounded, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err := s.Sink.Publish(bounded, batch)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("no confirmation within %s: %w", s.timeout, err)
	}
	return err
}

// Close implements [relay.Sink]. It closes the pool.
func (s *sink) Close() error {
	err := s.Sink.Close()
	s.pool.Close()
	return err
}
