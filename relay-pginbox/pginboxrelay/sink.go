package pginboxrelay

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/inbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// connectTimeout applies where the URL sets no connect_timeout.
const connectTimeout = 10 * time.Second

// sink is an inbox with a pool of its own.
type sink struct {
	*inbox.Sink
	pool    *pgxpool.Pool
	timeout time.Duration
}

func newSink(ctx context.Context, env relay.Env, raw json.RawMessage) (relay.Sink, error) {
	cfg := defaults()
	if err := relaycfg.Decode(raw, &cfg); err != nil {
		return nil, err
	}
	poolConfig, err := cfg.pool(env)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return nil, fmt.Errorf("open pool of remote inbox: %w", err)
	}
	in, err := inbox.Open(ctx, pool, inbox.Config{
		Schema: cfg.Schema, Table: cfg.Table, Source: env.Pipeline,
		Columns: inbox.Columns{
			ID: cfg.ID, Payload: cfg.Payload, EventType: cfg.EventType, Source: cfg.Source,
			AggregateID: cfg.AggregateID, ReceivedAt: cfg.ReceivedAt, TraceID: cfg.TraceID,
		},
	})
	if err != nil {
		pool.Close()
		return nil, err
	}
	return &sink{Sink: in, pool: pool, timeout: cfg.Timeout.D()}, nil
}

func (c *config) pool(env relay.Env) (*pgxpool.Config, error) {
	pc, err := pgxpool.ParseConfig(c.URL.Reveal())
	if err != nil {
		// The error quotes the URL, and it is not worth trusting that every
		// spelling of a password in it was found.
		return nil, relaycfg.Errorf("url", "is not a PostgreSQL connection URL or keyword/value string")
	}
	pc.MaxConns = int32(min(c.MaxConnections, 1000)) //nolint:gosec // bounded here
	if pc.ConnConfig.ConnectTimeout == 0 {
		pc.ConnConfig.ConnectTimeout = connectTimeout
	}
	// A peer that vanished without a word is found by keepalives, and a batch
	// that waits for it by the sink's timeout.
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}}
	pc.ConnConfig.DialFunc = dialer.DialContext
	if pc.ConnConfig.RuntimeParams["application_name"] == "" {
		pc.ConnConfig.RuntimeParams["application_name"] = strings.TrimSpace("pgtrickle-relay " + env.Pipeline)
	}
	return pc, nil
}

// Publish is that of the inbox, in bounded time.
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	bounded, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err := s.Sink.Publish(bounded, batch)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("no confirmation within %s: %w", s.timeout, err)
	}
	return err
}

// Close closes the pool.
func (s *sink) Close() error {
	err := s.Sink.Close()
	s.pool.Close()
	return err
}
