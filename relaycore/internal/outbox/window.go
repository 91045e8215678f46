package outbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// smallWindow is the number of rows up to which a window is fetched through the
// index on xid and sorted; larger ones are read along the index on id.
const smallWindow = 4096

// fewRows is the number of rows below which a window is expected to be when the one
// before it was: then its rows come without being counted first.
const fewRows = 64

// windows reads by snapshots: a window is what a later snapshot sees and an
// earlier one does not. See doc.go.
type windows struct {
	pos   mark
	big   bool // the open window is walked along the index on id
	known bool // big has been decided
	few   bool // the last window had few rows

	// What no later row can come before is not needed to read, but others want to
	// know it. Whoever was given an id held a lock before that. So once all who held
	// one, at a listing made after the sequence stood at an id, have ended, the next
	// window has every row up to it. Where the sequence may not be read, an id that
	// is visible says that all up to it were handed out. A session that takes ids in
	// bulk may use one in any later transaction; then sessions are waited for, too.
	locks   locks
	bounded bool     // ids come from a sequence, so the above holds
	numbers bool     // windows come with the sequence's last value
	seen    int64    // the highest id yet: handed out or, without numbers, visible
	wait    *writers // for whom to wait until ids up to waitFor are complete
	waitFor int64
	rowsAt  time.Time // when the last rows came
	closing int64     // complete with the open window; beginning = nothing is

	openSQL, fewSQL, sizeSQL, leastSQL, armsSQL, walkSQL string
}

// errBackwards says that the server has forgotten transactions that it had shown.
type errBackwards struct{ from, to string }

func (e *errBackwards) Error() string {
	return fmt.Sprintf("the database's snapshot %s lies before the checkpoint's %s: it was restored, or a standby that lagged was promoted", e.to, e.from)
}

func newWindows(t *table, l *layout, pos mark, safe int64) *windows {
	w := &windows{pos: pos, locks: newLocks(t), bounded: t.idOwner.oid != 0, numbers: t.idOwner.numbers(), seen: safe, waitFor: safe, closing: beginning}
	id, xid, from := quote(t.id), quote(t.xid), t.qualified()
	// Each range of xids is one index scan, whatever the statistics say: the limit
	// keeps the planner from flattening the subquery, and the order asks for the
	// index. A fixed list of ranges would be planned anew for each snapshot.
	ranges := ` FROM unnest($1::xid8[], $2::xid8[]) AS arm(lo, hi) CROSS JOIN LATERAL (SELECT %s FROM ` + from +
		` WHERE ` + xid + ` >= arm.lo AND ` + xid + ` <= arm.hi%s ORDER BY ` + xid + ` LIMIT %d) r`
	now := ` AND ` + xid + ` < pg_snapshot_xmax(pg_current_snapshot()) AND ` + id + ` > $3::bigint`
	in := ` AND pg_visible_in_snapshot(` + xid + `, $4::pg_snapshot) AND ` + id + ` > $3::bigint`
	cols := l.list("")
	last := ``
	if w.numbers {
		last = ` || ' ' || (` + t.idOwner.lastSQL() + `)`
	}
	w.openSQL = `WITH size AS MATERIALIZED (SELECT count(*) AS n` + fmt.Sprintf(ranges, "1", now, smallWindow+1) + `)
SELECT ` + l.nulls() + `, pg_current_snapshot()::text || ' ' || n` + last + ` FROM size
UNION ALL
(SELECT r.*, NULL::text` + fmt.Sprintf(ranges, cols, now, smallWindow+1) + ` WHERE (SELECT n FROM size) BETWEEN 1 AND ` + strconv.Itoa(smallWindow) + ` ORDER BY c0 LIMIT $4::int)`
	w.fewSQL = `SELECT r.*, h.t FROM (SELECT pg_current_snapshot()::text || ' 0'` + last + ` AS t) h LEFT JOIN LATERAL (SELECT r.*` + fmt.Sprintf(ranges, cols, now, fewRows) + `) r ON true ORDER BY c0 LIMIT $4::int`
	w.sizeSQL = `SELECT count(*)` + fmt.Sprintf(ranges, "1", in, smallWindow+1)
	// Adding zero keeps the planner from walking the index on id for the least.
	w.leastSQL = `SELECT min(least) FROM unnest($1::xid8[], $2::xid8[]) AS arm(lo, hi) CROSS JOIN LATERAL (SELECT min(` + id + ` + 0::bigint) AS least FROM ` + from + ` WHERE ` + xid + ` >= arm.lo AND ` + xid + ` <= arm.hi) r`
	w.armsSQL = `SELECT r.*` + fmt.Sprintf(ranges, cols, in, smallWindow+1) + ` ORDER BY c0 LIMIT $5::int`
	w.walkSQL = `SELECT ` + cols + ` FROM ` + from + ` WHERE ` + id + ` > $1::bigint AND pg_visible_in_snapshot(` + xid + `, $2::pg_snapshot) AND NOT pg_visible_in_snapshot(` + xid + `, $3::pg_snapshot) ORDER BY ` + id + ` LIMIT $4::int`
	return w
}

// arms lists the ranges of xids that may hold rows which lo does not see: what
// began after it, and each transaction that was running.
func arms(lo *snapshot, hi uint64) (los, his string) {
	var a, b strings.Builder
	a.WriteByte('{')
	b.WriteByte('{')
	if list := lo.xipList(); list != "" {
		a.WriteString(list)
		a.WriteByte(',')
		b.WriteString(list)
		b.WriteByte(',')
	}
	a.WriteString(strconv.FormatUint(lo.xmax, 10))
	b.WriteString(strconv.FormatUint(hi, 10))
	a.WriteByte('}')
	b.WriteByte('}')
	return a.String(), b.String()
}

func (w *windows) position() mark { return w.pos }

func (w *windows) read(ctx context.Context, db *session, want int, take taker) (readMarks, error) {
	for tries := 0; !w.pos.open; tries++ {
		if err := w.bound(ctx, db, tries > 0); err != nil {
			return readMarks{}, err
		}
		marks, done, err := w.open(ctx, db, want, take)
		if done || err != nil {
			return marks, err
		}
		if w.bounded && w.closing == beginning && tries < bigTries {
			// Whoever held a lock at the listing has most likely ended in a moment.
			w.pos.open, w.pos.hi = false, snapshot{}
			if err := pause(ctx, bigPause); err != nil {
				return readMarks{}, err
			}
		}
	}
	if !w.known {
		if err := w.measure(ctx, db); err != nil {
			return readMarks{}, err
		}
	}
	before := w.pos
	last, rows, cut := before.at, 0, false
	each := func(v [][]byte) (bool, error) {
		id, err := parseID(v[0])
		if err != nil {
			return false, err
		}
		last = id
		rows++
		more, err := take(v, id)
		if !more {
			cut = true
		}
		return more, err
	}
	var err error
	if w.big {
		err = db.query(ctx, w.walkSQL, db.formats, []string{itoa(before.at), before.hi.text, before.lo.text, strconv.Itoa(want)}, each)
	} else {
		los, his := arms(&before.lo, before.hi.xmax-1)
		err = db.query(ctx, w.armsSQL, db.formats, []string{los, his, itoa(before.at), before.hi.text, strconv.Itoa(want)}, each)
	}
	if err != nil {
		return readMarks{}, err
	}
	w.saw(last)
	marks := readMarks{in: before, more: true}
	marks.secure = w.step(last, rows < want && !cut)
	marks.after = w.pos
	return marks, nil
}

// How often locks are listed while rows come, and when none has come.
const (
	boundEvery = 500 * time.Millisecond
	boundIdle  = 50 * time.Millisecond
)

// A big window takes long, and can say meanwhile how far it is if it was opened
// when nothing was open below an id. So it is tried for, a few times.
const (
	bigTries = 4
	bigPause = 5 * time.Millisecond
)

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// saw notes the highest id of a read. One above what the sequence has handed out
// was written by hand, and says nothing.
func (w *windows) saw(last int64) {
	if !w.numbers {
		w.seen = max(w.seen, last)
	}
}

// bound finds out, off the path of the rows, below which id nothing appears any
// more. It comes before a window is opened, since only that one's snapshot shows
// what those who have ended wrote.
func (w *windows) bound(ctx context.Context, db *session, soon bool) error {
	every := boundEvery
	if time.Since(w.rowsAt) > boundIdle {
		every = boundIdle
	}
	if soon {
		every = 0
	}
	if !w.bounded || (w.wait == nil && w.seen <= w.waitFor) || time.Since(w.locks.at) < every {
		return nil
	}
	now, newlyPrepared, err := w.locks.list(ctx, db)
	if err != nil {
		return err
	}
	if w.wait == nil {
		w.wait, w.waitFor = now, w.seen
	} else {
		w.wait = w.wait.remaining(now, newlyPrepared)
	}
	if len(w.wait.list) == 0 {
		w.wait, w.closing = nil, w.waitFor
	}
	return nil
}

// measure decides how to read an open window, and where its rows begin.
func (w *windows) measure(ctx context.Context, db *session) error {
	los, his := arms(&w.pos.lo, w.pos.hi.xmax-1)
	n := 0
	err := db.query(ctx, w.sizeSQL, nil, []string{los, his, itoa(w.pos.at), w.pos.hi.text}, func(v [][]byte) (bool, error) {
		n, _ = strconv.Atoi(string(v[0]))
		return true, nil
	})
	if err != nil {
		return err
	}
	w.big, w.known = n > smallWindow, true
	if !w.big || w.pos.at != beginning {
		return nil
	}
	return db.query(ctx, w.leastSQL, nil, []string{los, his}, func(v [][]byte) (bool, error) {
		least, err := parseID(v[0])
		w.pos.at = least - 1
		return true, err
	})
}

// step moves behind what a read has taken. It returns the id up to which all is
// now read, or beginning: rows of a window come in the order of ids.
func (w *windows) step(last int64, complete bool) int64 {
	if !complete {
		w.pos.at = last
		return min(last, w.closing)
	}
	w.pos = mark{lo: w.pos.hi, at: beginning}
	w.known = false
	closed := w.closing
	w.closing = beginning
	return closed
}

// open takes a snapshot and reads what it sees and the position's does not. When
// that is too much to sort, it leaves the window open and reports false.
func (w *windows) open(ctx context.Context, db *session, want int, take taker) (readMarks, bool, error) {
	before := w.pos
	los, his := arms(&before.lo, math.MaxUint64)
	last, rows, size, cut := before.at, 0, 0, false
	var hi snapshot
	sql, few := w.openSQL, w.few && want >= fewRows
	if few {
		sql, want = w.fewSQL, fewRows
	}
	err := db.query(ctx, sql, db.formatsHeader, []string{los, his, itoa(before.at), strconv.Itoa(want)}, func(v [][]byte) (bool, error) {
		if head := v[len(v)-1]; head != nil && hi.text == "" {
			if err := w.header(string(head), &hi, &size); err != nil || v[0] == nil {
				return true, err // the header alone
			}
		}
		if hi.text == "" {
			return false, fmt.Errorf("rows of a window came before its snapshot")
		}
		id, err := parseID(v[0])
		if err != nil {
			return false, err
		}
		if rows > 0 && id <= last {
			return false, fmt.Errorf("ids are not unique or not in order: %d after %d", id, last)
		}
		last = id
		rows++
		more, err := take(v[:len(v)-1], id)
		if !more {
			cut = true
		}
		return more, err
	})
	if err != nil {
		return readMarks{}, true, err
	}
	complete := rows < want && !cut
	w.few = complete && rows < fewRows/2
	if few && !complete {
		// Of more rows than it was asked for these need not be the first.
		return readMarks{again: true}, true, nil
	}
	w.pos.hi, w.pos.open = hi, true
	if size > smallWindow {
		w.few, w.known = false, false // big, but where it begins is not known
		return readMarks{}, false, nil
	}
	w.big, w.known = false, true
	w.saw(last)
	if rows > 0 {
		w.rowsAt = time.Now()
	}
	marks := readMarks{in: w.pos, more: !complete || rows >= manyRows}
	marks.secure = w.step(last, complete)
	marks.after = w.pos
	return marks, true, nil
}

// header takes the first row of a new window: its snapshot, the number of its rows
// and the sequence's last value.
func (w *windows) header(head string, hi *snapshot, size *int) error {
	f := strings.Split(head, " ")
	if len(f) < 2 {
		return fmt.Errorf("parse header %q", head)
	}
	var err error
	if *hi, err = parseSnapshot(f[0]); err != nil {
		return err
	}
	if hi.xmax < w.pos.lo.xmax {
		return &errBackwards{from: w.pos.lo.text, to: hi.text}
	}
	if *size, err = strconv.Atoi(f[1]); err != nil {
		return err
	}
	if w.numbers && len(f) > 2 {
		last, err := strconv.ParseInt(f[2], 10, 64)
		w.seen = max(w.seen, last)
		return err
	}
	return nil
}

var _ strategy = (*windows)(nil)

// session is one connection for the length of one read.
type session struct {
	conn                   *pgx.Conn
	formats, formatsHeader []int16
}

// tuneSQL makes the planner read by an index in its order, whatever it thinks of
// the number of rows: a bitmap or a sort would go through a whole backlog for each
// read of it. That leaves one plan for all snapshots and ids, so it is made once
// for a connection. It holds for one transaction.
const tuneSQL = `SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), set_config('jit', 'off', true), set_config('max_parallel_workers_per_gather', '0', true), set_config('plan_cache_mode', 'force_generic_plan', true)`

// tuned marks the connections that Tune has seen.
const tuned = "outbox reads are tuned"

// Tune does for all transactions of a connection what each read would do for its
// own, at a tenth of the cost of a small one. It is for connections that the relay
// has to itself.
func Tune(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, strings.ReplaceAll(tuneSQL, ", true)", ", false)")); err != nil {
		return err
	}
	conn.PgConn().CustomData()[tuned] = true
	return nil
}

// query runs one statement, in one round trip and a transaction of its own, and
// gives each row to each until it declines; what is left is then passed over, so
// that the connection can go on.
func (db *session) query(ctx context.Context, sql string, formats []int16, args []string, each func(v [][]byte) (bool, error)) error {
	params := make([][]byte, len(args))
	for i := range args {
		params[i] = []byte(args[i])
	}
	var first []string
	if db.conn.PgConn().CustomData()[tuned] == nil {
		first = []string{tuneSQL}
	}
	send, err := db.statements(ctx, append(first, sql)...)
	if err != nil {
		return err
	}
	p := db.conn.PgConn().StartPipeline(ctx)
	for _, tune := range first {
		send(p, tune, nil, nil)
	}
	send(p, sql, params, formats)
	if err := p.Sync(); err != nil {
		return errors.Join(err, p.Close())
	}
	var failure error
	for n := 0; failure == nil; n++ {
		result, err := p.GetResults()
		if err != nil {
			failure = err
			break
		}
		r, ok := result.(*pgconn.ResultReader)
		if !ok {
			break // all are done
		}
		if n < len(first) {
			_, failure = r.Close()
		} else {
			failure = drain(r, each)
		}
	}
	if err := p.Close(); failure == nil {
		return err
	}
	return failure
}

// statements prepares what is to be sent, once for a connection, since to parse and
// plan a read costs several times what an empty one does. Where the URL says that
// connections are not to be relied on, as behind some poolers, nothing is prepared.
func (db *session) statements(ctx context.Context, sql ...string) (func(p *pgconn.Pipeline, sql string, params [][]byte, formats []int16), error) {
	if mode := db.conn.Config().DefaultQueryExecMode; mode == pgx.QueryExecModeExec || mode == pgx.QueryExecModeSimpleProtocol {
		return func(p *pgconn.Pipeline, sql string, params [][]byte, formats []int16) {
			p.SendQueryParams(sql, params, nil, nil, formats)
		}, nil
	}
	names := make(map[string]string, len(sql))
	for _, s := range sql {
		d, err := db.conn.Prepare(ctx, s, s) // a look-up, from the second time on
		if err != nil {
			return nil, err
		}
		names[s] = d.Name
	}
	return func(p *pgconn.Pipeline, sql string, params [][]byte, formats []int16) {
		p.SendQueryPrepared(names[sql], params, nil, formats)
	}, nil
}

func drain(r *pgconn.ResultReader, each func(v [][]byte) (bool, error)) error {
	var failure error
	more := true
	for r.NextRow() {
		if more {
			more, failure = each(r.Values())
			more = more && failure == nil
		}
	}
	if _, err := r.Close(); err != nil {
		return err
	}
	return failure
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func parseID(b []byte) (int64, error) {
	var n int64
	neg := false
	for i, c := range b {
		switch {
		case c == '-' && i == 0:
			neg = true
		case '0' <= c && c <= '9':
			n = n*10 - int64(c-'0') // negative, so that the least int64 fits
		default:
			return 0, fmt.Errorf("row id %q is not a number", b)
		}
	}
	if len(b) == 0 {
		return 0, fmt.Errorf("row has no id")
	}
	if !neg {
		n = -n
	}
	return n, nil
}
