package scan

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// smallWindow is the number of rows up to which a window is read through the index on
// xid and sorted. Larger windows are read along the index on id.
const smallWindow = MaxRows

// fewRows bounds the rows of a window that is read without being counted first. The
// scanner expects few rows if the window before had fewer than half as many.
const fewRows = 64

type windowStrategy struct{}

func (windowStrategy) Name() string { return "window" }

func (windowStrategy) Behind(id int64) Position { return &windowPosition{lo: nothing, at: id} }

func (windowStrategy) Now(ctx context.Context, q pg.Querier, t *table.Table) (p Position, highest int64, err error) {
	now, err := current(ctx, q)
	if err == nil {
		highest, err = table.HighestID(ctx, q, t) // after the snapshot: it must not miss a row that the snapshot sees
	}
	return &windowPosition{lo: now, at: table.Beginning}, highest, err
}

func (windowStrategy) Check(ctx context.Context, q pg.Querier, t *table.Table, set table.Settings, log *slog.Logger) error {
	name, xid := t.Qualified(), t.Columns.Xid
	switch {
	case xid == "":
		return relay.Fatal(fmt.Errorf("outbox_strategy window: %s has no column of type xid8: %s adds one", name, addXid(t)))
	case t.Type(xid) != "xid8":
		return relay.Fatal(fmt.Errorf("outbox_strategy window: column %s of %s has type %s and not xid8: %s adds one",
			xid, name, t.Type(xid), addXid(t)))
	case !t.NotNull(xid):
		return relay.Fatal(fmt.Errorf("column %s of %s may be null, which hides rows: %s fills it and sets it NOT NULL",
			xid, name, addXid(t)))
	case !t.XidIndexed:
		return relay.Fatal(fmt.Errorf("column %s of %s has no index: CREATE INDEX CONCURRENTLY ON %s (%s)", xid, name, name, t.Xid()))
	}
	accept := set.SequenceCache == "accept"
	if err := checkSequence(t, "in which rows of one key commit", accept); err != nil {
		if t.Sequence.Cache > 1 && !accept {
			err = relay.Fatal(fmt.Errorf("%w; or set sequence_cache to accept, if each key is written by one session at a time", err))
		}
		return err
	}
	if t.Sequence.Cache > 1 {
		log.Warn("sequence hands out ids in bulk", "table", name, "sequence", t.Sequence.Name, "cache", t.Sequence.Cache,
			"effect", "rows of a key come in order only if one session at a time writes the key")
	}
	return checkFuture(ctx, q, t)
}

// checkFuture refuses a table that was copied from another cluster: its rows may have
// transaction ids that this cluster has yet to assign.
func checkFuture(ctx context.Context, q pg.Querier, t *table.Table) error {
	name, xid := t.Qualified(), t.Xid()
	var future string
	if err := q.QueryRow(ctx, fill(futureSQL, t)).Scan(&future); err != nil {
		return fmt.Errorf("read the newest transaction of %s: %w", name, err)
	}
	if future == "" {
		return nil
	}
	return relay.Fatal(fmt.Errorf("rows of %s have transaction ids of another cluster, up to %s: the table was restored or copied; "+
		"UPDATE %s SET %s = '3' WHERE %s >= pg_snapshot_xmax(pg_current_snapshot()); set on_restore to continue", name, future, name, xid, xid))
}

var (
	//go:embed sql/future.sql
	futureSQL string
	//go:embed sql/window_open.sql
	windowOpenSQL string
	//go:embed sql/window_few.sql
	windowFewSQL string
	//go:embed sql/window_one.sql
	windowOneSQL string
	//go:embed sql/window_size.sql
	windowSizeSQL string
	//go:embed sql/window_lowest.sql
	windowLowestSQL string
	//go:embed sql/window_arms.sql
	windowArmsSQL string
	//go:embed sql/window_walk.sql
	windowWalkSQL string
)

// windows reads by snapshots: a window holds the rows that a later snapshot sees and
// an earlier one does not, in the order of ids. A window is in one of four states:
//
//   - closed: pos.open is false. A read opens the next window: one statement takes its
//     snapshot and returns its rows, and mostly closes it again.
//   - open, small: a read did not return all rows of the window. The next one sorts
//     the rest again.
//   - open, big: the window is too large to sort. Reads walk the index on id.
//   - open, unmeasured: after a restart, or if a window turned out too large as it was
//     opened. The next read counts its rows, and makes it small or big.
type windows struct {
	pos     windowPosition
	shape   shape // of the open window
	few     bool  // the last window had few rows
	horizon horizon

	formats, formatsHead                                          []int16
	openSQL, fewSQL, oneSQL, sizeSQL, lowestSQL, armsSQL, walkSQL string
}

type shape int

const (
	unmeasured shape = iota
	small
	big
)

func newWindows(t *table.Table, l *rows.Layout, pos windowPosition, safe int64) *windows {
	w := &windows{pos: pos, horizon: newHorizon(t, safe), formats: l.Formats(0), formatsHead: l.Formats(1)}
	last := ``
	if w.horizon.numbers {
		last = ` || ' ' || (` + t.Sequence.LastSQL() + `)`
	}
	render := func(template string) string {
		return fill(template, t, "{columns}", l.Columns(), "{nulls}", l.Nulls(), "{last}", last,
			"{small}", strconv.Itoa(smallWindow), "{over}", strconv.Itoa(smallWindow+1), "{few}", strconv.Itoa(fewRows))
	}
	w.openSQL, w.fewSQL, w.oneSQL, w.sizeSQL = render(windowOpenSQL), render(windowFewSQL), render(windowOneSQL), render(windowSizeSQL)
	w.lowestSQL, w.armsSQL, w.walkSQL = render(windowLowestSQL), render(windowArmsSQL), render(windowWalkSQL)
	return w
}

// AtRest implements [Windowed].
func (w *windows) AtRest() bool { return !w.pos.open }

// EndAt implements [Windowed]. The horizon is not concerned: a window that it closes
// with is opened by the scanner, after the listing.
func (w *windows) EndAt(text string) error {
	hi, err := parseSnapshot(text)
	if err != nil {
		return err
	}
	if err := w.pos.compare(&hi); err != nil {
		return err
	}
	w.pos.hi, w.pos.open, w.shape = hi, true, unmeasured
	return nil
}

func (w *windows) Position() Position {
	p := w.pos
	return &p
}

// Read implements [Scanner].
func (w *windows) Read(ctx context.Context, db DB, want int, take Take) (Read, error) {
	start := w.pos
	for tries := 0; !w.pos.open; tries++ {
		if w.horizon.due(tries > 0) {
			if err := w.horizon.advance(ctx, db, tries > 0); err != nil {
				return Read{}, err
			}
		}
		read, done, err := w.open(ctx, db, want, take)
		if done || err != nil {
			read.Moved = start.lo.text != w.pos.lo.text
			return read, err
		}
		if w.horizon.worthRetry(tries) {
			w.pos = start
			if err := backoff.Sleep(ctx, retryPause); err != nil {
				return Read{}, err
			}
		}
	}
	if w.shape == unmeasured {
		if err := w.measure(ctx, db); err != nil {
			return Read{}, err
		}
	}
	read, err := w.goOn(ctx, db, want, take)
	read.Moved = start.open || start.lo.text != w.pos.lo.text
	return read, err
}

// open opens a window: it takes a snapshot and reads the rows that it sees and the
// position's does not. If they are too many to sort it leaves the window open, and
// returns done = false.
func (w *windows) open(ctx context.Context, db DB, want int, take Take) (read Read, done bool, err error) {
	before := w.pos
	los, his := before.lo.arms(math.MaxUint64)
	sql, few := w.openSQL, w.few && want >= fewRows
	if few {
		sql, want = w.fewSQL, fewRows
		if before.lo.xipList() == "" {
			sql, los, his = w.oneSQL, strings.Trim(los, "{}"), strings.Trim(his, "{}")
		}
	}
	var head head
	n := intake{take: take, last: before.at, ordered: true}
	args := []string{los, his, strconv.FormatInt(before.at, 10), strconv.Itoa(want)}
	err = db.Query(ctx, sql, w.formatsHead, args, func(v [][]byte) (bool, error) {
		if text := v[len(v)-1]; text != nil && head.hi.text == "" {
			if err := head.parse(string(text), &before.lo); err != nil || v[0] == nil {
				return true, err // the row is the head alone
			}
		}
		if head.hi.text == "" {
			return false, errors.New("rows of a window came before its snapshot")
		}
		return n.row(v[:len(v)-1])
	})
	if err != nil {
		return Read{}, true, err
	}

	w.horizon.handedOut(head.last)
	complete := n.rows < want && !n.declined
	w.few = complete && n.rows < fewRows/2
	if few && !complete {
		// There are more rows than the statement returned, and those need not be the
		// first ones.
		return Read{Again: true}, true, nil
	}
	w.pos.hi, w.pos.open = head.hi, true
	if head.size > smallWindow {
		w.few, w.shape = false, unmeasured
		return Read{}, false, nil
	}
	w.shape = small
	w.horizon.saw(n.last, n.rows)
	read = Read{Inside: w.Position(), From: before.at, More: !complete || n.rows >= manyRows}
	read.Secure = w.step(n.last, complete)
	read.After = w.Position()
	return read, true, nil
}

// goOn reads more rows of the open window.
func (w *windows) goOn(ctx context.Context, db DB, want int, take Take) (Read, error) {
	before := w.pos
	n := intake{take: take, last: before.at}
	at, limit := strconv.FormatInt(before.at, 10), strconv.Itoa(want)
	sql, args := w.walkSQL, []string{at, before.hi.text, before.lo.text, limit}
	if w.shape == small {
		los, his := before.lo.arms(before.hi.xmax - 1)
		sql, args = w.armsSQL, []string{los, his, at, before.hi.text, limit}
	}
	if err := db.Query(ctx, sql, w.formats, args, n.row); err != nil {
		return Read{}, err
	}
	read := Read{Inside: &before, From: before.at, More: true}
	w.horizon.saw(n.last, 0)
	read.Secure = w.step(n.last, n.rows < want && !n.declined)
	read.After = w.Position()
	return read, nil
}

// step moves behind the rows that a read has taken, up to id last. It returns the id
// up to which everything is now read, or [table.Beginning].
func (w *windows) step(last int64, complete bool) int64 {
	if !complete {
		w.pos.at = last
		return min(last, w.horizon.closing)
	}
	w.pos = windowPosition{lo: w.pos.hi, at: table.Beginning}
	w.shape = unmeasured
	return w.horizon.close()
}

// measure decides how to read an open window, and where its rows start.
func (w *windows) measure(ctx context.Context, db DB) error {
	los, his := w.pos.lo.arms(w.pos.hi.xmax - 1)
	n, err := queryID(ctx, db, w.sizeSQL, los, his, strconv.FormatInt(w.pos.at, 10), w.pos.hi.text)
	if err != nil {
		return err
	}
	w.shape = small
	if n <= smallWindow {
		return nil
	}
	w.shape = big
	if w.pos.at != table.Beginning {
		return nil
	}
	lowest, err := queryID(ctx, db, w.lowestSQL, los, his)
	if err != nil {
		w.shape = unmeasured
		return err
	}
	w.pos.at = lowest - 1
	return nil
}

// head is the text column of a new window's first row: its snapshot and the number of
// its rows. The sequence's last value follows if it can be read.
type head struct {
	hi   snapshot
	size int
	last int64
}

func (h *head) parse(text string, lo *snapshot) (err error) {
	f := strings.Split(text, " ")
	if len(f) < 2 {
		return fmt.Errorf("parse header %q", text)
	}
	if h.hi, err = parseSnapshot(f[0]); err != nil {
		return err
	}
	if h.hi.xmax < lo.xmax {
		return &BackwardsError{From: lo.text, To: h.hi.text}
	}
	if h.size, err = strconv.Atoi(f[1]); err != nil {
		return err
	}
	h.last = table.Beginning
	if len(f) > 2 {
		h.last, err = strconv.ParseInt(f[2], 10, 64)
	}
	return err
}
