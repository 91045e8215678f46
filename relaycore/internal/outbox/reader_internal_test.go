package outbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/pace"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/progress"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
)

// server is the far side of a reader in a bubble: a table of rows with ids from 1 to
// last, read by the fence.
type server struct {
	last     int64
	oid      uint32
	failure  error // of the next read
	reads    int
	watched  int
	lookedAt int // the first id was asked for
	forgot   int
	inUse    int
}

func (s *server) connect(context.Context) (conn, scan.DB, error) {
	s.inUse++
	return serverConn{s}, serverDB{s}, nil
}

type serverConn struct{ *server }

func (c serverConn) Release()                     { c.inUse-- }
func (serverConn) serverName() string             { return "" }
func (c serverConn) forget(context.Context) error { c.forgot++; return nil }

func (serverConn) Begin(context.Context) (pgx.Tx, error) { return nil, errors.ErrUnsupported }

func (serverConn) Exec(context.Context, string, ...any) (pgconn.CommandTag, error) {
	return pgconn.CommandTag{}, errors.ErrUnsupported
}

func (serverConn) Query(context.Context, string, ...any) (pgx.Rows, error) {
	return nil, errors.ErrUnsupported
}

func (c serverConn) QueryRow(_ context.Context, _ string, args ...any) pgx.Row {
	if len(args) == 0 { // the first id
		c.lookedAt++
		return row(func(...any) error { return nil })
	}
	c.watched++
	return row(func(dest ...any) error {
		*dest[0].(*uint32) = c.oid
		return nil
	})
}

type row func(dest ...any) error

func (r row) Scan(dest ...any) error { return r(dest...) }

type serverDB struct{ *server }

func (s serverDB) Query(_ context.Context, _ string, _ []int16, args []string, each func(v [][]byte) (bool, error)) error {
	s.reads++
	if err := s.failure; err != nil {
		s.failure = nil
		return err
	}
	var from int64
	if _, err := fmt.Sscanf(args[0], "{%d}", &from); err != nil {
		return err
	}
	for id := from; id <= s.last; id++ {
		if more, err := each([][]byte{strconv.AppendInt(nil, id, 10), []byte("{}"), nil}); err != nil || !more {
			return err
		}
	}
	return nil
}

// testReader returns a reader of s that starts at the first row.
func testReader(s *server) *reader {
	t := &table.Table{Schema: "public", Name: "events", OID: 1, Plain: true, Columns: table.Columns{ID: "id", Payload: "payload"}}
	l := rows.NewLayout(t)
	start := progress.Start{Position: scan.Fence.Behind(0)}
	cfg := &Config{PollInterval: 100 * time.Millisecond, Settings: Settings{Strategy: "fence", DedupKeyFormat: "legacy"}}
	cfg.defaults()
	s.oid = 1
	return &reader{
		cfg: cfg, conns: s, shared: new(shared), pace: pace.New(new(pace.Crowd)),
		table: t, tracker: progress.New(start, progress.NewNotifier(), nil), scanner: start.Position.Scan(t, l, 0),
		builder: rows.NewBuilder(t, l, rows.IDs{}, nil, nil),
		watch:   watch{origin: table.Origin{Table: 1}, checked: time.Now()},
	}
}

// receiveFor calls receive for a while, and returns the number of messages.
func (r *reader) receiveFor(t *testing.T, d time.Duration) (n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	for {
		r.pace.Enter()
		batch, err := r.receive(ctx, 100, true)
		r.pace.Leave()
		n += len(batch)
		if ctx.Err() != nil {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestReaderPolls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{last: 150}
		r := testReader(s)
		if n := r.receiveFor(t, time.Second); n != 150 || s.inUse != 0 {
			t.Fatalf("%d messages, %d connections in use; want 150 and 0", n, s.inUse)
		}
		if s.reads < 40 || s.reads > 80 {
			t.Errorf("%d reads in the first second, want some dozens", s.reads)
		}
		s.reads, s.watched = 0, 0
		r.receiveFor(t, 10*time.Second)
		if s.reads < 95 || s.reads > 105 || s.watched < 9 || s.watched > 11 {
			t.Errorf("idle for 10 s: %d reads and %d looks at the table, want about 100 and 10", s.reads, s.watched)
		}
	})
}

func TestReaderAsksToReopen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{last: 1}
		r := testReader(s)
		r.receiveFor(t, 5*time.Second)
		s.oid = 2
		begun := time.Now()
		_, err := r.receive(t.Context(), 100, true)
		var why *reopenError
		if took := time.Since(begun); !errors.As(err, &why) || took > watchEvery+100*time.Millisecond || s.inUse != 0 {
			t.Fatalf("after %s: %v, %d connections in use; want a reopen error and none", took, err, s.inUse)
		}
	})
}

// After an error the reader looks at its table before it reads. A prepared statement
// that no longer fits its table is forgotten, and the outbox opened again.
func TestReaderAfterAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{failure: errors.New("connection lost")}
		r := testReader(s)
		if _, err := r.receive(t.Context(), 100, false); err == nil || s.watched != 0 {
			t.Fatalf("error %v, looked %d times; want an error and 0", err, s.watched)
		}
		if _, err := r.receive(t.Context(), 100, false); err != nil || s.watched != 1 {
			t.Fatalf("error %v, looked %d times; want none and 1", err, s.watched)
		}
		s.failure = &pgconn.PgError{Code: "0A000", Message: "cached plan must not change result type"}
		if _, err := r.receive(t.Context(), 100, false); err == nil || s.forgot != 1 {
			t.Fatalf("error %v, forgot the statements %d times; want an error and 1", err, s.forgot)
		}
		var why *reopenError
		if _, err := r.receive(t.Context(), 100, false); !errors.As(err, &why) {
			t.Fatalf("error %v, want one that asks to reopen", err)
		}
	})
}

func TestReaderLooksBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{last: 3}
		r := testReader(s)
		r.receiveFor(t, 2*pace.HeldUpFor)
		if s.lookedAt != 0 {
			t.Fatalf("looked back %d times while Receive was called", s.lookedAt)
		}
		time.Sleep(pace.HeldUpFor)
		r.receiveFor(t, time.Second)
		if s.lookedAt != 1 {
			t.Fatalf("looked back %d times after a minute without Receive, want 1", s.lookedAt)
		}
	})
}
