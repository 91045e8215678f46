package outbox

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/snapshot"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

// connector gives a reader a connection for each read. Tests replace it.
type connector interface {
	// connect returns a connection, and the same one for the scanner.
	connect(ctx context.Context) (conn, scan.DB, error)
}

// conn is a connection that one read has to itself.
type conn interface {
	pg.Querier
	snapshot.Beginner
	Release()
	// forget drops the prepared statements.
	forget(ctx context.Context) error
	// serverName is [scan.Session.Server].
	serverName() string
}

// pool is a [connector].
type pool struct{ *pgxpool.Pool }

func (p pool) connect(ctx context.Context) (conn, scan.DB, error) {
	c, err := p.Acquire(ctx)
	if err != nil {
		return nil, nil, err
	}
	return pooled{c}, scan.Session{Conn: c.Conn()}, nil
}

type pooled struct{ *pgxpool.Conn }

func (c pooled) serverName() string { return scan.Session{Conn: c.Conn.Conn()}.Server() }

func (c pooled) forget(ctx context.Context) error { return c.Conn.Conn().DeallocateAll(ctx) }
