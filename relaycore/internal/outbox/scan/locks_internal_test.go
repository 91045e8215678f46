package scan

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// TestListingsAreShared: scanners of one server take a listing that is recent enough from
// each other. One of another database, or of a connection whose server is not known, asks.
func TestListingsAreShared(t *testing.T) {
	t.Parallel()
	pool, other := pgtest.Pool(t), pgtest.Pool(t)
	const ddl = `CREATE TABLE outbox (id bigserial PRIMARY KEY, payload jsonb)`
	for _, p := range []*pgxpool.Pool{pool, other} {
		if _, err := p.Exec(t.Context(), ddl); err != nil {
			t.Fatal(err)
		}
	}
	tab, err := table.Resolve(t.Context(), pool, "outbox", table.DefaultSettings())
	if err != nil {
		t.Fatal(err)
	}
	connect := func(p *pgxpool.Pool, tune bool) Session {
		t.Helper()
		c, err := p.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Release)
		if tune {
			if err := Tune(t.Context(), c.Conn()); err != nil {
				t.Fatal(err)
			}
		}
		return Session{c.Conn()}
	}
	one, two, elsewhere, untuned := connect(pool, true), connect(pool, true), connect(other, true), connect(pool, false)
	list := func(db Session, since time.Time) (writers int, began time.Time) {
		t.Helper()
		l := newLocks(tab)
		now, _, err := l.list(t.Context(), db, since)
		if err != nil {
			t.Fatal(err)
		}
		return len(now.list), l.began
	}

	began := time.Now()
	n, first := list(one, began)
	if n != 0 {
		t.Fatalf("%d writers, want none", n)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), `INSERT INTO outbox (payload) VALUES ('{}')`); err != nil {
		t.Fatal(err)
	}
	if n, at := list(two, began); n != 0 || !at.Equal(first) {
		t.Errorf("%d writers, want those of the listing that another scanner has asked for", n)
	}
	if n, _ := list(two, time.Now()); n != 1 {
		t.Errorf("%d writers at a later time, want 1", n)
	}
	if n, _ := list(untuned, began); n != 1 {
		t.Errorf("%d writers by a connection to a server that is not known, want 1", n)
	}
	if n, at := list(elsewhere, began); n != 0 || at.Before(first) || elsewhere.Server() == one.Server() {
		t.Errorf("%d writers in another database, at %s; want a listing of its own", n, at)
	}
}
