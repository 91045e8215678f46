package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgerrcode"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/pace"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/progress"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/snapshot"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// reader reads one opening of an outbox. Only the goroutine of Receive uses it. If the
// table changes, the reader returns a [*reopenError] and is of no use any longer.
type reader struct {
	cfg    *Config
	conns  connector
	shared *shared
	pace   *pace.Pace

	table   *table.Table
	tracker *progress.Tracker
	scanner scan.Scanner
	builder *rows.Builder
	watch   watch

	read     scan.Read       // the last one
	claim    *rows.Claim     // a claim check that is being read; nil = none is
	large    *rows.Large     // that comes next; nil = none does
	wants    int64           // its length in bytes, if the caller is to find memory for it
	existing *existing       // rows of the captured table; nil = none are read
	delta    table.Delta     // of the claim checks
	state    *snapshot.State // nil = snapshots are not compared
	ready    []relay.Message // read and not yet returned
	caughtUp bool            // the last read left nothing behind
	highest  int64           // id that was read
	late     bool            // a late row was reported
}

// receive returns at most limit messages. Without wait it returns none if the table has
// none.
func (r *reader) receive(ctx context.Context, limit int, wait bool) ([]relay.Message, error) {
	for {
		if len(r.ready) == 0 {
			r.passExisting()
		}
		if n := min(limit, len(r.ready)); n > 0 {
			out := r.ready[:n:n]
			r.ready = r.ready[n:]
			return out, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if r.caughtUp {
			r.caughtUp = false
			if err := r.pace.Wait(ctx, r.cfg.PollInterval, r.cfg.Wake); err != nil {
				return nil, err
			}
		}
		asks := r.wants == 0
		more, err := r.poll(ctx, limit)
		if err != nil {
			return nil, err
		}
		if asks && wait && r.wants > 0 {
			return nil, nil // the caller finds memory for it first
		}
		r.caughtUp = !more
		if r.caughtUp && !wait && len(r.ready) == 0 {
			return nil, nil
		}
	}
}

// poll reads once, on a connection that it has to itself. It reports whether there may
// be more rows at once.
func (r *reader) poll(ctx context.Context, limit int) (more bool, err error) {
	c, db, err := r.conns.connect(ctx)
	if err != nil {
		return false, fmt.Errorf("read outbox %s: connect: %w", r.table.Qualified(), err)
	}
	defer c.Release()
	if r.watch.due() {
		if err := r.check(ctx, c); err != nil {
			return false, err
		}
	}
	if r.watch.hasXid {
		if err := r.upgrade(); err != nil {
			return false, err
		}
	}
	if r.pace.HeldUp {
		if err := r.lookBack(ctx, c); err != nil {
			return false, r.explain(err)
		}
		r.pace.HeldUp = false
	}

	if r.state != nil {
		if err := r.state.Seed(ctx, c); err != nil {
			return false, r.explain(err)
		}
	}
	switch {
	case r.claim != nil:
		more, err = true, r.readClaim(ctx, c, db)
	case r.large != nil:
		more, err = true, r.readLarge(ctx, db)
	case r.dueExisting():
		more, err = true, r.readExisting(ctx, db)
	default:
		more, err = r.readRows(ctx, db, limit)
		if r.existing != nil && err == nil {
			r.existing.window = r.existing.window && !r.atRest()
			more = more || r.existing.held != nil || r.dueExisting()
		}
	}
	r.shared.setPosition(r.table, r.scanner.Position())
	if err == nil {
		return more, nil
	}

	r.watch.failed = true
	r.builder.Discard()
	if scan.IsReplaced(err) {
		r.watch.suspect = true
		return true, nil // the next call opens the outbox again
	}
	if pg.Is(err, pgerrcode.FeatureNotSupported, pgerrcode.InvalidSQLStatementName) && ctx.Err() == nil {
		// The table has changed under a prepared statement, or a pooler has lost it.
		err = errors.Join(err, c.forget(ctx))
	}
	return false, r.explain(err)
}

// readRows reads the next rows of the table. It asks for as many rows as messages are
// wanted, because most rows have one.
func (r *reader) readRows(ctx context.Context, db scan.DB, limit int) (more bool, err error) {
	n, lateID, highest, safe := 0, int64(0), r.highest, r.tracker.SettledUpTo()
	read, err := r.scanner.Read(ctx, db, min(r.pace.Rows, max(limit, pace.FirstRows)), func(v [][]byte, id int64) (bool, error) {
		n++
		highest = max(highest, id)
		if id <= safe {
			lateID = id
		}
		return r.builder.Row(v, id) && r.builder.Bytes() < r.cfg.ReadBytes, nil
	})
	if err != nil {
		return false, err
	}
	if read.Again {
		r.builder.Discard()
		return true, nil
	}
	r.cfg.Polled(n > 0)
	r.pace.Saw(n)
	if n == 0 {
		r.tracker.Skip(read)
		return read.More, nil
	}

	if lateID != 0 && !r.late {
		r.late = true
		r.cfg.Logger.Error("row appeared below settled id", "table", r.table.Qualified(), "id", lateID, "settled_up_to", safe,
			"cause", "its id was written by hand, or taken by nextval in an earlier transaction than its insert",
			"effect", "it is delivered; consumers that go by ids have missed it")
	}
	r.read, r.highest = read, highest
	r.pace.Resize(r.cfg.ReadBytes, r.builder.Bytes(), n)
	if r.claim = r.builder.Claim(); r.claim != nil {
		r.pace.Rows = pace.FirstRows
	}
	r.large = r.builder.Large()
	alone := r.claim != nil || r.large != nil // a row that is read by itself
	r.pass(!alone)
	return read.More || alone, nil
}

// pass makes the builder's chunk ready. Last ends the read that it belongs to.
func (r *reader) pass(last bool) {
	msgs, slots := r.builder.Finish()
	r.tracker.Add(slots, r.read, last)
	r.ready = msgs
}

// explain adds the cure to errors of the server, and their class.
func (r *reader) explain(err error) error {
	name := r.table.Qualified()
	err = fmt.Errorf("read outbox %s: %w", name, err)
	switch {
	case errors.Is(err, snapshot.ErrGone):
		r.watch.failed = true
		return &reopenError{reason: err.Error()}
	case pg.IsDenied(err):
		return relay.Fatal(fmt.Errorf("%w; GRANT SELECT ON %s TO pgtrickle_relay", err, name))
	case pg.Is(err, pgerrcode.UndefinedTable, pgerrcode.UndefinedColumn, pgerrcode.InvalidColumnReference, pgerrcode.FeatureNotSupported):
		r.watch.suspect = true // the table is gone or has changed
	}
	return err
}
