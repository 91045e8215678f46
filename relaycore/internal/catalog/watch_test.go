package catalog_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

func eventually(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, within)
		}
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	pool := pgtest.Open(t, url)
	var changed, listening atomic.Int32
	outbox, letters, retried := make(chan string, 10), make(chan string, 10), make(chan string, 102)
	var pid atomic.Uint32
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		catalog.Watch(ctx, func(ctx context.Context) (*pgx.Conn, error) {
			conn, err := pgx.Connect(ctx, url)
			if err == nil {
				pid.Store(conn.PgConn().PID())
			}
			return conn, err
		}, time.Hour, catalog.Events{
			Changed:     func() { changed.Add(1) },
			Retry:       func(p string) { retried <- p },
			DeadLetters: func(p string) { letters <- p },
			Outbox:      func(p string) { outbox <- p },
			Listening: func(err error) {
				if err == nil {
					listening.Add(1)
				}
			},
		})
	}()
	want := func(ch chan string, s string) {
		t.Helper()
		select {
		case got := <-ch:
			if got != s {
				t.Fatalf("got %q, want %q", got, s)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("no %q", s)
		}
	}
	want(letters, "")
	want(outbox, "")
	before := changed.Load()
	if before != 1 {
		t.Errorf("Changed called %d times at the start, want 1", before)
	}

	// A burst is one change.
	_, err := pool.Exec(ctx, `SELECT pg_notify('pgtrickle_relay_config', i::text) FROM generate_series(1, 100) i`)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "change", time.Second, func() bool { return changed.Load() > before })
	for len(retried) > 0 {
		<-retried
	}
	if _, err = pool.Exec(ctx, `SELECT pg_notify('pgtrickle_outbox_new', 'outbox_x'), pg_notify('pgtrickle_relay_dlq', 'p')`); err != nil {
		t.Fatal(err)
	}
	want(outbox, "outbox_x")
	want(letters, "p")
	if got := changed.Load(); got != before+1 {
		t.Errorf("Changed called %d times for a burst, want once", got-before)
	}

	for payload, name := range map[string]string{`{"event":"RETRY","name":""}`: "", `{"event":"UPDATE","name":"p","enabled":true}`: "p"} {
		if _, err = pool.Exec(ctx, `SELECT pg_notify('pgtrickle_relay_config', $1)`, payload); err != nil {
			t.Fatal(err)
		}
		want(retried, name)
	}
	eventually(t, "changes after retries", time.Second, func() bool { return changed.Load() > before+1 })
	time.Sleep(100 * time.Millisecond) // the last coalesced change

	// A new connection asks for everything again.
	before = changed.Load()
	if _, err = pool.Exec(ctx, `SELECT pg_terminate_backend($1)`, pid.Load()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "listening again", 5*time.Second, func() bool { return listening.Load() == 2 })
	eventually(t, "change after reconnect", time.Second, func() bool { return changed.Load() > before })
	cancel()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("Watch has not returned")
	}
}

func TestWatchPolls(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	var changed atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go catalog.Watch(ctx, func(ctx context.Context) (*pgx.Conn, error) { return pgx.Connect(ctx, url) }, 50*time.Millisecond, catalog.Events{
		Changed: func() { changed.Add(1) }, Retry: func(string) {}, DeadLetters: func(string) {}, Outbox: func(string) {}, Listening: func(error) {},
	})
	eventually(t, "polls without notification", 5*time.Second, func() bool { return changed.Load() >= 4 })
}
