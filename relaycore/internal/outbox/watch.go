package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/progress"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/together"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// watchEvery is how often a running source looks whether its table and server are still
// the same. After an error it looks before it reads.
const watchEvery = time.Second

// FollowEvery is how often a running source asks the extension's catalog whether its
// stream table has another outbox, because it was dropped and created again.
const FollowEvery = 2 * time.Second

// reopenError reports that a reader cannot go on, and the outbox must be opened again.
type reopenError struct {
	reason string
	from   *relay.Checkpoint // nil = the stored one
}

func (e *reopenError) Error() string { return "open the outbox again: " + e.reason }

// watch is what a reader knows about changes of its table and server.
type watch struct {
	origin  table.Origin
	checked time.Time
	asked   time.Time // when the extension's catalog was asked
	failed  bool      // the last read ended in an error
	suspect bool      // an error of a read showed that the table has changed
	hasXid  bool      // snapshot windows have become possible
}

// due reports whether it is time to look for changes.
func (w *watch) due() bool {
	return w.failed || w.suspect || time.Since(w.checked) >= watchEvery
}

// looks are those of all readers of the process. A row wakes all that read its outbox, and
// each looks at the table before it reads.
var looks together.Group[look, table.Watched]

// look is what a reader looks at.
type look struct {
	server, table, xidColumn string
	origin                   table.Origin
	upgradable               bool
}

// recent is how old the look of another reader may be. An own one would have come
// that much earlier, had its second been over.
const recent = watchEvery / 4

// look looks at the table, or returns what another reader of the same server has just seen.
// After an error it looks itself.
func (r *reader) look(ctx context.Context, c conn) (table.Watched, error) {
	w, set := &r.watch, &r.cfg.Settings
	asked := look{c.serverName(), r.table.Qualified(), set.XidColumn, w.origin, set.Strategy == "auto" && r.tracker.Strategy() != scan.Window}
	ask := func(ctx context.Context) (table.Watched, error) {
		return table.Watch(ctx, c, r.table, w.origin, asked.xidColumn, asked.upgradable)
	}
	if asked.server == "" || w.failed || w.suspect {
		return ask(ctx)
	}
	return looks.Do(ctx, asked, time.Now().Add(-recent), ask)
}

// check looks for changes. It returns a [*reopenError] if the reader cannot go on.
func (r *reader) check(ctx context.Context, q conn) error {
	w := &r.watch
	now, err := r.look(ctx, q)
	if err != nil {
		w.failed = true
		return err
	}
	if now.Recovering {
		return fmt.Errorf("read outbox %s: the server is a standby", r.table.Qualified())
	}
	if w.suspect || changed(w.origin, now.Origin) {
		w.failed = true // until it is open again
		return &reopenError{reason: "the table or the server has changed"}
	}
	if err := r.follow(ctx, q); err != nil {
		return err
	}
	if err := r.identify(ctx, q); err != nil {
		return err
	}
	if now.Origin.File != w.origin.File && !r.table.Partitioned {
		// VACUUM FULL, or TRUNCATE without a restart of the ids. Neither moves the
		// position.
		w.origin.File = now.Origin.File
		r.tracker.SetFile(now.Origin.File)
	}
	w.checked, w.failed, w.hasXid = time.Now(), false, now.HasXid
	return nil
}

// follow returns a [*reopenError] if the stream table has another outbox now, and this
// one is read to its end. A name that means nothing now may mean something later.
func (r *reader) follow(ctx context.Context, q pg.Querier) error {
	w := &r.watch
	if !r.table.Registered() || r.claim != nil || time.Since(w.asked) < FollowEvery || r.pace.Quiet() < FollowEvery {
		return nil
	}
	w.asked = time.Now()
	now, err := table.Find(ctx, q, r.cfg.Outbox)
	switch {
	case relay.IsFatal(err):
		return nil
	case err != nil:
		w.failed = true
		return err
	case now.Schema == "pgtrickle" && now.Name != r.table.Name:
		w.failed = true
		return &reopenError{reason: "the stream table was created again and has outbox " + now.Qualified()}
	}
	return nil
}

// identify gives the outbox the identity that it could not get while an older relay ran.
// No id changes by that: rows that were read, or that the older relay has published, are
// up to LegacyTo.
func (r *reader) identify(ctx context.Context, q pg.Querier) error {
	if r.builder.Identified() || r.cfg.Settings.DedupKeyFormat == "legacy" {
		return nil
	}
	ids, err := identify(ctx, q, r.cfg, r.table, r.watch.origin)
	if err != nil {
		return err
	}
	r.builder.SetIDs(r.table, ids)
	r.shared.identify(ids)
	return nil
}

// changed reports whether the table was replaced, its ids restarted, or its server
// promoted.
func changed(was, now table.Origin) bool {
	return was.Table != now.Table || was.Sequence != now.Sequence || was.Timeline != now.Timeline
}

// upgrade returns a [*reopenError] if the fence is at a point where windows can go on
// without repeating a row.
func (r *reader) upgrade() error {
	id, clean := r.scanner.Position().Clean()
	if r.claim != nil || !clean || !r.tracker.Idle(id) {
		return nil
	}
	c := r.tracker.Settle(nil)
	return &reopenError{reason: "the table has a transaction id column now", from: &c}
}

// lookBack watches the ids that are missing between the highest that was read and the
// table's first row.
func (r *reader) lookBack(ctx context.Context, q pg.Querier) error {
	first, err := table.FirstID(ctx, q, r.table)
	if err != nil {
		return err
	}
	known := max(r.highest, r.scanner.Position().Covered(), r.tracker.SecuredUpTo())
	gap, err := progress.GapBehind(ctx, q, r.table, known, first)
	if err != nil {
		return err
	}
	r.tracker.Watch(gap)
	r.highest = max(r.highest, gap.To)
	return nil
}
