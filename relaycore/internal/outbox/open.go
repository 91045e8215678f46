package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/backfill"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/identity"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/progress"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/snapshot"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/together"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// opening is the result of opening an outbox: the table, and where to go on in it.
type opening struct {
	table    *table.Table
	start    progress.Start
	state    *snapshot.State // nil = snapshots are not compared
	backfill *backfill.Table // whose rows are read first; nil = none is
	refused  error           // why a requested snapshot is not read
	ids      rows.IDs
	reused   bool // see [Source.Reused]
}

// question is what pipelines that are opened at once ask together.
type question struct {
	pool     *pgxpool.Pool
	outbox   string
	settings Settings
	leased   bool
	here     table.Origin // of the table whose identity is asked for
}

// description is what the answer has of an outbox, for each of them. It never changes.
type description struct {
	table    *table.Table
	here     table.Origin
	strategy scan.Strategy
	lowest   *int64 // id in the table; nil = it is empty
	now      scan.Moment
	requests backfill.Requests // none without a lease
}

// descriptions are those of the process. Where hundreds of pipelines of one outbox are
// taken over from a process that was killed, they would ask the same dozen questions each.
var descriptions together.Group[question, *description]

// describe describes the table, and checks that it can be read without losing a row. All that
// it returns was read after the call. Pipelines share an answer if the first of its queries
// began later than each of their calls. So it is no older than one that a pipeline would
// read for itself, and these races end as they always have:
//
//   - The table is created again, or its server changes, behind the answer. The reader looks
//     for that, compares it with the answer's origin, and opens the outbox again.
//   - A row is written or removed behind the answer. Only rows below the lowest id are taken
//     for gone; rows that come later are read.
//   - The checkpoint is read before the call. So its snapshot is not later than the
//     answer's, unless the database went back.
//
// It must be called without a connection, because the first caller takes one for all.
func describe(ctx context.Context, pool *pgxpool.Pool, cfg *Config) (*description, error) {
	asked := question{pool: pool, outbox: cfg.Outbox, settings: cfg.Settings, leased: cfg.Epoch > 0}
	return descriptions.Do(ctx, asked, time.Now(), func(ctx context.Context) (d *description, err error) {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return nil, fmt.Errorf("connect: %w", err)
		}
		defer conn.Release()
		return describeTable(ctx, conn, cfg)
	})
}

func describeTable(ctx context.Context, q pg.Querier, cfg *Config) (*description, error) {
	t, err := table.Resolve(ctx, q, cfg.Outbox, cfg.Settings)
	if err != nil {
		return nil, err
	}
	d := &description{table: t, strategy: scan.Choose(t, cfg.Settings, cfg.Logger)}
	if d.here, err = table.Identify(ctx, q, t); err != nil {
		return nil, err
	}
	if err := d.strategy.Check(ctx, q, t, cfg.Settings, cfg.Logger); err != nil {
		return nil, err
	}
	if d.lowest, err = table.FirstID(ctx, q, t); err != nil {
		return nil, err
	}
	if d.now, err = scan.Now(ctx, q); err != nil {
		return nil, err
	}
	if cfg.Epoch > 0 {
		d.requests, err = backfill.Pending(ctx, q)
	}
	return d, err
}

// open describes the table and decides where to go on, behind c. Running is the id up to
// which the source that reopens has settled everything, [table.Beginning] for a new one.
//
// The caller must hold no connection. Acquiring a second one could deadlock the pool when
// many sources open together.
func open(ctx context.Context, pool *pgxpool.Pool, cfg *Config, c relay.Checkpoint, running int64) (*opening, error) {
	d, err := describe(ctx, pool, cfg)
	if err != nil {
		return nil, err
	}
	cp, err := progress.Parse(c)
	if err != nil {
		return nil, err
	}
	t := d.table
	o := &opening{table: t, start: progress.Start{Origin: d.here, Safe: t.BeforeFirstID(), Counted: t.Sequence.OID != 0}}
	if d.lowest != nil {
		o.start.Safe = min(o.start.Safe, *d.lowest-1)
	}

	var known int64 // ids up to it were read
	if cp == nil {
		known, err = o.fromOffset(ctx, pool, cfg, d.strategy, c.LastID)
	} else {
		known, err = o.fromCheckpoint(cfg, d, cp, running)
	}
	if err != nil {
		return nil, err
	}
	// The checkpoint comes first: its error names the id to continue after.
	if o.ids, err = identifyTogether(ctx, pool, cfg, d); err != nil {
		return nil, err
	}
	if o.start.Position == nil {
		o.start.Position = d.strategy.Behind(o.start.Safe)
	}
	if o.start.Gap, err = progress.GapBehind(ctx, pool, t, known, d.lowest); err != nil {
		return nil, err
	}
	if err := o.openBackfill(ctx, pool, cfg, d, cp); err != nil {
		return nil, err
	}
	o.state, err = openState(ctx, pool, cfg, t, snapshot.Start{
		Origin: d.here, Behind: o.start.Safe, Known: cp != nil || o.start.Safe > t.BeforeFirstID(), Reused: o.reused,
	})
	return o, err
}

// identities are those that pipelines ask for together. They are no part of a description,
// because a pipeline whose checkpoint is refused must not give an outbox an identity.
var identities together.Group[question, rows.IDs]

// identifyTogether is identify for all pipelines that ask at a time.
func identifyTogether(ctx context.Context, pool *pgxpool.Pool, cfg *Config, d *description) (rows.IDs, error) {
	asked := question{pool: pool, outbox: d.table.Qualified(), settings: cfg.Settings, here: d.here}
	ids, err := identities.Do(ctx, asked, time.Now(), func(ctx context.Context) (rows.IDs, error) {
		return identify(ctx, pool, cfg, d.table, d.here)
	})
	ids.Pipeline = cfg.Identity
	return ids, err
}

// identify returns how the ids of the pipeline's messages are made.
func identify(ctx context.Context, q pg.Querier, cfg *Config, t *table.Table, here table.Origin) (rows.IDs, error) {
	ids, err := identity.Find(ctx, q, cfg.Store(q), cfg.Settings, t, here)
	ids.Pipeline = cfg.Identity
	return ids, err
}

// fromOffset starts after the public offset, which an earlier relay may have left, or
// behind lastID. With neither, the pipeline runs for the first time.
func (o *opening) fromOffset(
	ctx context.Context, q pg.Querier, cfg *Config, strategy scan.Strategy, lastID int64,
) (known int64, err error) {
	offset, found, err := cfg.Store(q).Offset(ctx, cfg.Pipeline)
	if err != nil {
		return 0, err
	}
	if !found && lastID == 0 {
		return o.fromStartup(ctx, q, cfg, strategy)
	}
	if found {
		lastID = max(lastID, offset)
	}
	o.start.Safe = max(o.start.Safe, lastID)
	return lastID, nil
}

// fromStartup starts at the place of key startup. Rows that it leaves out are not counted, so
// that none of them is taken for a loss. It returns [table.Beginning] if missing ids prove
// nothing.
//
// A row of the window strategy that commits later is delivered, whatever its id is. The
// fence goes by ids alone: it leaves out each row below its start.
func (o *opening) fromStartup(ctx context.Context, q pg.Querier, cfg *Config, strategy scan.Strategy) (known int64, err error) {
	if cfg.Settings.Startup == table.StartEarliest {
		return 0, nil
	}
	var behind int64
	known = table.Beginning
	if id, ok := cfg.Settings.StartID(); ok {
		highest, err := table.HighestID(ctx, q, o.table)
		switch {
		case err != nil:
			return 0, err
		case id > highest+1:
			return 0, relay.Fatal(fmt.Errorf("startup at:%d: the newest row of %s is %d; set startup to an id up to %d, or to latest",
				id, o.table.Qualified(), highest, highest+1))
		}
		behind, known = id-1, id-1
		o.start.Position = strategy.Behind(behind)
	} else if o.start.Position, behind, err = strategy.Now(ctx, q, o.table); err != nil {
		return 0, err
	}
	if cfg.Settings.Startup == table.StartSnapshot {
		o.start.Backfill = backfill.Begin(time.Now())
	}
	o.start.Uncounted = behind
	if strategy == scan.Fence {
		o.start.Safe = max(o.start.Safe, behind)
	}
	cfg.Logger.Info("pipeline runs for the first time", "table", o.table.Qualified(), "startup", cfg.Settings.Startup, "behind_id", behind)
	return known, nil
}

// openBackfill finds the table whose rows are read, if there is one. If the outbox was
// created again, or the database went back, an earlier run proves nothing. Then another one
// begins.
func (o *opening) openBackfill(
	ctx context.Context, q pg.Querier, cfg *Config, d *description, cp *progress.Checkpoint,
) (err error) {
	b := backfill.Opening{
		Pipeline: cfg.Pipeline, Strategy: d.strategy, Settings: cfg.Settings, Logger: cfg.Logger,
		Requests: d.requests, Anew: o.reused || o.start.Resumed == nil, State: o.start.Backfill,
	}
	if cp != nil {
		b.Served = cp.Served
	}
	if cp != nil && cp.Backfill != nil {
		b.State = cp.Backfill
	}
	o.backfill, err = b.Open(ctx, q, o.table)
	o.start.Backfill, o.start.Served, o.refused = b.State, b.Served, b.Refused
	return err
}

// fromCheckpoint continues after a checkpoint. It returns [table.Beginning] if missing
// ids prove nothing.
func (o *opening) fromCheckpoint(cfg *Config, d *description, cp *progress.Checkpoint, running int64) (known int64, err error) {
	strategy := d.strategy
	switch change, detail := o.start.Origin.Since(cp.Of, o.table.Partitioned); {
	case change == table.Elsewhere && cfg.Settings.OnRestore == "refuse":
		return 0, relay.Fatal(fmt.Errorf("the checkpoint was made in %s: "+
			"this is a restored or cloned copy, and a relay here may send to the original's receivers; "+
			"disable the pipeline, or set on_restore to continue, which goes on behind id %d and may repeat rows", detail, cp.Safe))
	case change == table.Elsewhere:
		cfg.Logger.Warn("checkpoint is of another database", "checkpoint", detail, "behind_id", cp.Safe)
		o.start.Safe, o.reused = cp.Safe, true
		return table.Beginning, nil
	case change == table.Restarted && cp.Safe <= o.start.Safe:
		cfg.Logger.Info("outbox was created again", "table", o.table.Qualified())
		return table.Beginning, nil
	case change == table.Restarted:
		cfg.Logger.Error("outbox ids have restarted", "table", o.table.Qualified(), "detail", detail,
			"effect", "the table is read from its first row; only with dedup_key_format legacy do receivers drop rows whose ids repeat")
		o.reused = true
		return table.Beginning, nil
	case change == table.Promoted:
		cfg.Logger.Warn("server was promoted or restored",
			"timeline", o.start.Origin.Timeline, "checkpoint", cp.Of.Timeline, "behind_id", cp.Safe,
			"effect", "rows may repeat; ids of lost rows are handed out again, to messages of other ids unless dedup_key_format is legacy")
		o.reused = true
	}

	o.start.Safe = cp.Safe
	if cp.Mode != strategy.Name() {
		return table.Beginning, nil
	}
	position, err := cp.Position()
	if err != nil {
		return 0, err
	}
	err = position.Check(d.now)
	switch {
	case scan.IsBackwards(err) && cfg.Settings.OnRestore == "refuse":
		return 0, relay.Fatal(fmt.Errorf("%w; disable the pipeline, or set on_restore to continue, which may repeat rows", err))
	case scan.IsBackwards(err):
		safe := cp.Safe
		if running != table.Beginning {
			safe = running
		}
		cfg.Logger.Warn("database snapshot went backwards", "err", err, "behind_id", safe)
		position, o.reused = strategy.Behind(safe), true
	case err != nil:
		return 0, err
	}
	o.start.Position, o.start.Resumed = position, cp
	return cp.Safe, nil
}

// use makes the source read an opening.
func (s *Source) use(o *opening) {
	t, start := o.table, o.start
	var settled rows.Settled
	if start.Resumed != nil {
		settled = start.Resumed.Settled()
	}
	tracker := progress.New(start, s.moved, func(g progress.Gap, ids int64) {
		s.cfg.Logger.Error("undelivered ids are gone", "table", t.Qualified(), "from_id", g.From, "to_id", g.To, "ids", ids,
			"effect", "if they were not rolled back, retention deleted rows that had not been delivered")
	})
	layout := rows.NewLayout(t)
	if o.state != nil {
		layout.LeaveSnapshots()
	}
	scanner := start.Position.Scan(t, layout, start.Safe)

	s.reader = &reader{
		cfg: &s.cfg, conns: pool{s.pool}, shared: &s.shared, pace: s.pace,
		table: t, tracker: tracker, scanner: scanner, delta: t.Delta, state: o.state,
		builder:  rows.NewBuilder(t, layout, o.ids, settled, s.spare),
		existing: newExisting(o.backfill, start.Backfill, s.cfg.Settings.SnapshotRate),
		watch:    watch{origin: start.Origin, checked: time.Now()},
		highest:  max(start.Safe, start.Gap.To),
	}
	if s.cfg.Settings.SnapshotMarker {
		s.reader.builder.MarkSnapshots()
	}
	s.reused = o.reused
	s.shared.set(view{t, tracker, o.state, o.ids, o.refused}, start.Position)
	if t.Delta.Name != "" && start.Safe > 0 {
		// The last owner may have been killed before it gave up the rows of claim
		// checks that it had settled.
		s.shared.claimed.Store(start.Safe)
		s.moved.Notify()
	}
	if start.Resumed == nil {
		s.moved.Notify() // so that the next owner begins at the same position
	}
	s.cfg.Logger.Debug("outbox opened", "table", t.Qualified(), "strategy", tracker.Strategy().Name(), "settled_up_to", start.Safe)
}

// reopen opens the outbox again, behind the checkpoint that the reader asks for or the
// one that is stored. After a failover that may be an older one than the source's.
func (s *Source) reopen(ctx context.Context, why *reopenError) error {
	level := slog.LevelWarn
	if why.from != nil {
		level = slog.LevelInfo // the reader knows where to go on: nothing went wrong
	}
	s.cfg.Logger.Log(ctx, level, "outbox is opened again", "table", s.reader.table.Qualified(), "reason", why.reason)
	tracker := s.reader.tracker
	c := why.from
	if c == nil {
		stored, found, err := s.cfg.Store(s.pool).Checkpoint(ctx, s.cfg.Pipeline)
		if err != nil {
			return err
		}
		if !found {
			stored = tracker.Settle(nil)
		}
		c = &stored
	}
	o, err := open(ctx, s.pool, &s.cfg, *c, tracker.SettledUpTo())
	if err != nil {
		return fmt.Errorf("open outbox %q again: %w", s.cfg.Outbox, err)
	}
	s.use(o)
	return nil
}
