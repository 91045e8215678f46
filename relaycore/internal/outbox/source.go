package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Source reads one outbox table. It implements [relay.Checkpointer] and
// [relay.Lagger].
type Source struct {
	pool *pgxpool.Pool
	cfg  Config
	log  *slog.Logger

	// Receive's side.
	table     *table
	origin    origin
	strategy  strategy
	builder   *builder
	sess      session
	ready     []relay.Message // received and not yet handed out
	streaming *claimed        // a claim check that is being read
	marks     readMarks       // of the read in hand
	wantRows  int
	claimRows int
	lastRow   time.Time // when the last row was seen
	checked   time.Time // when the guard last looked
	failed    bool      // the last read ended in an error
	caughtUp  bool      // the last read left nothing behind
	upgrade   bool      // windows have become possible
	reused    bool      // see Reused
	lateSaid  bool      // a row came below what was said to be settled
	highest   int64     // id that was read
	returned  time.Time // when Receive last did
	heldUp    bool      // and was not called again for long

	settler atomic.Pointer[settler]
	shape   atomic.Pointer[table] // as table, for others than Receive
	lag     atomic.Pointer[lagPoint]
	claimed atomic.Int64         // highest claim check received
	signal  bell                 // see relay.Mover
	spare   chan []relay.Message // see relay.Recycler

	// Committed's side.
	consumed   int64
	consumedAt time.Time
	unable     bool        // to give anything up
	reminder   *time.Timer // nil until there is something to be reminded of
}

// strategy decides which rows come next.
type strategy interface {
	// read takes at most want rows and gives them to take in the order of
	// delivery, until take declines; rows behind that are not counted as read.
	read(ctx context.Context, db *session, want int, take taker) (readMarks, error)
	position() mark
}

// taker takes one row; false means that it was the last.
type taker func(v [][]byte, id int64) (bool, error)

// readMarks are the positions inside and behind a read.
type readMarks struct {
	in, after mark
	secure    int64 // no row appears up to it once all of this is settled; beginning = not known
	more      bool  // there may be more at once
	again     bool  // what came is to be forgotten, and read again
}

// rows of a first read, before it is known how large they are, and of any.
const (
	firstRows = 64
	mostRows  = smallWindow
)

// manyRows is how many rows a read has that is worth another one at once. A read
// of fewer has caught up: one more would mostly be empty, and be in the way of the
// next row.
const manyRows = 16

// Open finds the outbox, checks that it can be read without losing a row, and
// returns a source that goes on behind cfg.Checkpoint.
func Open(ctx context.Context, pool *pgxpool.Pool, cfg Config) (*Source, error) {
	cfg.defaults()
	s := &Source{pool: pool, cfg: cfg, log: cfg.Logger, wantRows: firstRows, claimRows: firstRows, signal: make(bell, 1), spare: make(chan []relay.Message, mostSpare)}
	if err := s.begin(ctx, pool, cfg.Checkpoint); err != nil {
		return nil, fmt.Errorf("open outbox %q: %w", cfg.Outbox, err)
	}
	return s, nil
}

// begin resolves the table and goes on behind c, forgetting all that was read. A
// source that holds a connection gives it as q. Would it take another one, sources
// that begin anew at once could each hold one and wait for one for ever.
func (s *Source) begin(ctx context.Context, q querier, c relay.Checkpoint) error {
	t, err := resolve(ctx, q, s.cfg.Outbox, s.cfg.Settings)
	if err != nil {
		return err
	}
	here, err := whereabouts(ctx, q, t)
	if err != nil {
		return err
	}
	mode, err := s.choose(ctx, q, t)
	if err != nil {
		return err
	}
	st, err := parseState(c)
	if err != nil {
		return err
	}
	start, err := s.startFrom(ctx, q, t, here, mode, st, c.LastID)
	if err != nil {
		return err
	}
	l := newLayout(t)
	s.table, s.origin, s.reused = t, here, start.reused
	s.sess = session{formats: l.formats(0), formatsHeader: l.formats(1)}
	if mode == modeWindow {
		s.strategy = newWindows(t, l, start.mark, start.safe)
	} else {
		s.strategy = newFence(t, l, start.mark)
	}
	typ := t.columns[t.payload].typ
	s.builder = &builder{
		table: t.name, stream: t.streamTable, source: t.qualified(), layout: l, plain: t.plain,
		raw: typ != "json" && typ != "jsonb", skip: start.skip, spare: s.spare,
	}
	s.ready, s.streaming, s.failed, s.caughtUp = nil, nil, false, false
	s.checked = time.Now()
	s.shape.Store(t)
	s.lag.Store(&lagPoint{mode, start.mark})
	set := &settler{mode: mode, origin: here, moved: s.signal, base: start.mark, part: start.part, safe: start.safe, done: start.done, counts: start.audit, gone: overtaken{ids: start.expired, say: s.sayOvertaken}}
	set.counts.on = t.idOwner.oid != 0
	set.gone.watch(start.gap)
	s.highest = max(start.safe, start.gap.to)
	s.settler.Store(set)
	s.claimed.Store(max(start.safe, 0))
	if t.delta.name != "" && start.safe > 0 {
		s.signal.ring() // a predecessor may have been killed before it gave up what it had settled
	}
	s.log.Debug("outbox opened", "table", t.qualified(), "strategy", mode, "settled_up_to", start.safe)
	return nil
}

// Table returns the outbox table's qualified name.
func (s *Source) Table() string { return s.table.schema + "." + s.table.name }

// Strategy returns "window" or "fence".
func (s *Source) Strategy() string { return s.settler.Load().mode }

// KeyColumns returns the primary key of the stream table, nil where it is not
// known.
func (s *Source) KeyColumns() []string { return slices.Clone(s.table.keys) }

// Reused reports whether ids behind the checkpoint may have stood for other rows:
// the table's ids have begun again, or the server goes on from an earlier state of
// itself. Then what the far end has under an id need not be the row that has it now.
// It is asked before the first Receive.
func (s *Source) Reused() bool { return s.reused }

// Receive implements [relay.Source].
func (s *Source) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	return s.receive(ctx, limit, true)
}

// Look is Receive for those who do not wait for new rows: it returns no messages
// when a look at the table has found none, however long that took.
func (s *Source) Look(ctx context.Context, limit int) ([]relay.Message, error) {
	return s.receive(ctx, limit, false)
}

func (s *Source) receive(ctx context.Context, limit int, stay bool) ([]relay.Message, error) {
	s.heldUp = s.heldUp || !s.returned.IsZero() && time.Since(s.returned) >= heldUpFor
	defer func() { s.returned = time.Now() }()
	for {
		if n := min(limit, len(s.ready)); n > 0 {
			out := s.ready[:n:n]
			s.ready = s.ready[n:]
			return out, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if s.caughtUp {
			s.caughtUp = false
			if err := s.wait(ctx); err != nil {
				return nil, err
			}
		}
		more, err := s.poll(ctx, limit)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, err
		}
		s.caughtUp = !more
		if s.caughtUp && !stay && len(s.ready) == 0 {
			return nil, nil
		}
	}
}

// Unread returns the first row, of those up to the id to, that lies behind all that
// was read; nil when there is none. Such a row came just now, or is held back. The
// source must have begun at an id, because a checkpoint may lie in the midst of what
// is delivered. It must not be called during a Receive.
func (s *Source) Unread(ctx context.Context, to int64) (first *int64, err error) {
	id := quote(s.table.id)
	err = s.pool.QueryRow(ctx, `SELECT min(`+id+`)::bigint FROM `+s.table.qualified()+` WHERE `+id+` > $1::bigint AND `+id+` <= $2::bigint`, s.highest, to).Scan(&first)
	if err != nil {
		return nil, s.explain(err)
	}
	return first, nil
}

// wait lets time pass that is a small part of the time since the last row, so
// that a busy outbox is looked at every millisecond and a quiet one rarely.
func (s *Source) wait(ctx context.Context) error {
	pause := min(max(time.Since(s.lastRow)/8, time.Millisecond), s.cfg.PollInterval)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.cfg.Wake:
	case <-timer.C:
	}
	return nil
}

// poll reads once. It reports whether there may be more at once.
func (s *Source) poll(ctx context.Context, limit int) (more bool, err error) {
	c, err := s.pool.Acquire(ctx)
	if err != nil {
		return false, fmt.Errorf("read outbox %s: connect: %w", s.table.qualified(), err)
	}
	defer c.Release()
	if s.failed || time.Since(s.checked) >= guardEvery {
		if err := s.guard(ctx, c.Conn()); err != nil {
			return false, err
		}
	}
	if s.upgrade && s.quiescent() {
		s.upgrade = false
		s.log.Info("the outbox has a transaction id column now: going on with snapshot windows", "table", s.table.qualified(), "behind_id", s.settler.Load().settledUpTo())
		if err := s.begin(ctx, c.Conn(), s.settler.Load().settle(nil)); err != nil {
			return false, fmt.Errorf("open outbox %q again: %w", s.cfg.Outbox, err)
		}
	}
	if s.heldUp {
		if err := s.lookBack(ctx, c.Conn()); err != nil {
			return false, s.explain(err)
		}
	}
	s.sess.conn = c.Conn()
	more, err = s.readOnce(ctx, limit)
	s.lag.Store(&lagPoint{s.settler.Load().mode, s.strategy.position()})
	if err != nil {
		s.failed = true
		var pg *pgconn.PgError
		if errors.As(err, &pg) && (pg.Code == "0A000" || pg.Code == "26000") && ctx.Err() == nil {
			// The table has changed under a prepared statement, or a pooler has lost it.
			err = errors.Join(err, c.Conn().DeallocateAll(ctx))
		}
		err = s.explain(err)
	}
	return more, err
}

// readOnce reads one chunk: the next rows of the table, or the next deltas of a
// claim check. Rows are as many as messages may be, since most have one.
func (s *Source) readOnce(ctx context.Context, limit int) (more bool, err error) {
	b := s.builder
	b.reset()
	if s.streaming != nil {
		before := *s.streaming
		last, err := s.stream(ctx, &s.sess, s.streaming)
		if err != nil {
			*s.streaming = before
			return false, err
		}
		if last {
			s.streaming = nil
		}
		s.deliver(last)
		return true, nil
	}
	rows := 0
	start := s.strategy.position()
	late, highest, safe := int64(0), s.highest, s.settler.Load().settledUpTo()
	marks, err := s.strategy.read(ctx, &s.sess, min(s.wantRows, max(limit, firstRows)), func(v [][]byte, id int64) (bool, error) {
		rows++
		highest = max(highest, id)
		if id <= safe {
			late = id
		}
		return b.row(v, id) && b.bytes < s.cfg.ReadBytes, nil
	})
	if err != nil || marks.again {
		return marks.again, err
	}
	s.cfg.Polled(rows > 0)
	st := s.settler.Load()
	if rows == 0 {
		s.record(st, start, marks)
		return marks.more, nil
	}
	if late != 0 && !s.lateSaid {
		s.lateSaid = true
		s.log.Error("a row appeared below an id up to which all had been delivered; it is delivered, but whoever goes by ids has missed it: "+
			"its id was written by hand, or taken by nextval in an earlier transaction than its insert",
			"table", s.table.qualified(), "id", late, "settled_up_to", safe)
	}
	s.highest = highest
	s.lastRow = time.Now()
	s.wantRows = min(clampRows(s.cfg.ReadBytes, b.bytes, rows), 4*s.wantRows)
	s.marks = marks
	if b.claim != nil {
		s.streaming = b.claim
		s.claimed.Store(max(s.claimed.Load(), b.claim.id))
		s.wantRows = firstRows
	}
	s.deliver(b.claim == nil)
	return marks.more || b.claim != nil, nil
}

// record keeps a position that changed though there was no row.
func (s *Source) record(st *settler, start mark, marks readMarks) {
	if start.open || start.lo.text != marks.after.lo.text || start.last != marks.after.last || len(start.holes) != len(marks.after.holes) {
		st.advance(marks.after)
	}
	if marks.secure != beginning {
		st.secure(marks.secure)
	}
}

// deliver hands the builder's chunk over; last says that its read ends with it.
func (s *Source) deliver(last bool) {
	msgs, slots := s.builder.finish()
	for i := range slots {
		if slots[i].end {
			delete(s.builder.skip, slots[i].id)
		}
	}
	st := s.settler.Load()
	st.add(&chunk{slots: slots, last: last, mark: s.marks.in, after: s.marks.after})
	if last && s.marks.secure != beginning {
		st.secure(s.marks.secure)
	}
	s.ready = msgs
}

// clampRows says how many rows fill budget, going by the last ones.
func clampRows(budget, bytes, rows int) int {
	each := max(bytes/max(rows, 1), 1)
	return min(max(budget/each, 16), mostRows)
}

// Ack is not used: the engine calls Checkpoint.
func (s *Source) Ack(context.Context, []relay.Message) error {
	return relay.Fatal(errors.New("an outbox is acknowledged by its checkpoint"))
}

// Checkpoint implements [relay.Checkpointer]. batch may be empty: rows without
// messages and windows without rows move the checkpoint too.
func (s *Source) Checkpoint(batch []relay.Message) (relay.Checkpoint, error) {
	return s.settler.Load().settle(batch), nil
}

// Close implements [relay.Source]. The pool is the caller's.
func (s *Source) Close() error {
	if s.reminder != nil {
		s.reminder.Stop()
	}
	return nil
}

// explain gives errors of the server the class and the cure that they have here.
func (s *Source) explain(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("read outbox %s: %w", s.table.qualified(), err)
	}
	err = fmt.Errorf("read outbox %s: %w", s.table.qualified(), err)
	switch pg.Code {
	case "42501":
		return relay.Fatal(fmt.Errorf("%w; GRANT SELECT ON %s TO pgtrickle_relay", err, s.table.qualified()))
	case "42P01", "42703", "42P10", "0A000":
		// Gone or changed: the guard looks again before the next read.
		s.checked = time.Time{}
	}
	return err
}

// mostSpare is how many slices are kept to be filled again: as many as are on
// their way between two reads of a busy outbox.
const mostSpare = 4

// Recycle implements [relay.Recycler].
func (s *Source) Recycle(batch []relay.Message) {
	clear(batch) // it must not hold on to the rows that were in it
	select {
	case s.spare <- batch[:0]:
	default:
	}
}

// bell makes the engine store a checkpoint, be it the same.
type bell chan struct{}

func (b bell) ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

// Moved implements [relay.Mover].
func (s *Source) Moved() <-chan struct{} { return s.signal }

var (
	_ relay.Checkpointer = (*Source)(nil)
	_ relay.Lagger       = (*Source)(nil)
	_ relay.Mover        = (*Source)(nil)
	_ relay.Recycler     = (*Source)(nil)
)

func minID(t *table) int64 {
	if t.idOwner.oid != 0 && t.idOwner.increment > 0 {
		return t.idOwner.start - 1
	}
	return math.MinInt64
}
