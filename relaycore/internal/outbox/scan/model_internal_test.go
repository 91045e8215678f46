package scan

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
)

// This file is a model of PostgreSQL as far as an outbox is concerned. It walks through
// every order in which transactions and a reader can take their steps.
// The reader is made of the real parts: snapshot.sees, fold, writers.remaining.
// docs/model describes what is modelled and what is checked.

// mark is a position of either strategy.
type mark struct {
	lo, hi   snapshot
	open     bool
	at, last int64
	holes    []hole
}

// complete is the position of the fence's.
func (m *mark) complete() int64 {
	p := fencePosition{last: m.last, holes: m.holes, open: m.open, at: m.at}
	return p.Complete()
}

// op is one step of a transaction. The kinds are:
//
//	x  take a transaction id
//	k  lock a key
//	l  lock the table
//	r  write a row of a key
//	i  take the row's id before its lock
//	p  prepare
//	u  unlock
//	e  end
type op struct {
	kind byte
	key  int8
}

func program(s string) []op {
	var ops []op
	for f := range strings.FieldsSeq(s) {
		o := op{kind: f[0]}
		if len(f) > 1 {
			o.key = int8(f[1] - '0')
		}
		ops = append(ops, o)
	}
	return ops
}

type modelTx struct {
	pc       int
	xid      uint64
	name     string // under which it holds the table's lock; "" = it does not
	key      int8   // whose lock it holds
	early    int64  // an id taken before the lock
	rows     []modelRow
	visible  bool // committed, and every later snapshot shows it
	over     bool // committed or rolled back, so no longer running
	prepared bool
}

type modelRow struct {
	id  int64
	xid uint64
	key int8
	seq int8
}

// bugs are mutations: each must be found.
type bugs struct {
	byXid, noXip, lateHi, listAfterRead, twoSnapshots, forgetPrepared, closeAtOnce bool
	noSequenceLock, numberBehindList, oneListing, staleListing                     bool
}

type world struct {
	programs [][]op
	bugs     bugs
	fence    bool
	limit    int

	nextID  int64
	nextXid uint64
	txs     []modelTx
	keys    [4]int8 // committed numbers by key

	pos, durable mark
	known        *writers
	shared       *writers // listed by another scanner since bounds.seen was read and since known
	listed       bool     // a listing is newer than the last read
	stale        []modelRow
	halfway      bool
	claims       bool // the id reported as settled is modelled, too
	bounds       bounds
	durableSafe  int64
	crashes      int
	checkpoints  int

	seen map[int64]bool
	high [4]int8
	fail string
}

// bounds are what windows know of ids. safe is the highest id that either strategy has
// reported as settled: no row may come up to it for the first time.
type bounds struct {
	seen, waitFor, closing, safe int64
	wait                         *writers
}

func (w *world) clone() *world {
	c := *w
	c.txs = slices.Clone(w.txs)
	for i := range c.txs {
		c.txs[i].rows = slices.Clone(w.txs[i].rows)
	}
	c.seen = make(map[int64]bool, len(w.seen))
	maps.Copy(c.seen, w.seen)
	return &c
}

// key identifies a state: everything that decides what can happen next.
func (w *world) key() string {
	var b strings.Builder
	for _, t := range w.txs {
		fmt.Fprintf(&b, "%d,%d,%s,%d,%d,%v,%v,%v|", t.pc, t.xid, t.name, t.key, t.early, t.rows, t.visible, t.over)
	}
	mark := func(m mark) {
		fmt.Fprintf(&b, "%s/%s/%d/%d/%v", m.lo.text, m.hi.text, m.at, m.last, m.open)
		for _, h := range m.holes {
			fmt.Fprintf(&b, "(%d-%d", h.lo, h.hi)
			if h.by != nil {
				fmt.Fprintf(&b, "%v", h.by.list)
			}
			b.WriteByte(')')
		}
	}
	mark(w.pos)
	mark(w.durable)
	fmt.Fprintf(&b, "%d,%d,%d,%d,%d", w.bounds.seen, w.bounds.waitFor, w.bounds.closing, w.bounds.safe, w.durableSafe)
	if w.bounds.wait != nil {
		fmt.Fprintf(&b, "%v", w.bounds.wait.list)
	}
	if w.shared != nil {
		fmt.Fprintf(&b, "shared%v", w.shared.list)
	}
	fmt.Fprintf(&b, "%d %d %v %v %v %v %d %d %v", w.nextID, w.nextXid, w.keys, w.listed, w.halfway, w.stale, w.crashes, w.checkpoints, w.known.list)
	ids := make([]int64, 0, len(w.seen))
	for id := range w.seen {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	fmt.Fprintf(&b, "%v %v", ids, w.high)
	return b.String()
}

// visibleRows is what a statement sees now.
func (w *world) visibleRows() []modelRow {
	var rows []modelRow
	for _, t := range w.txs {
		if t.visible {
			rows = append(rows, t.rows...)
		}
	}
	slices.SortFunc(rows, func(a, b modelRow) int { return int(a.id - b.id) })
	return rows
}

func (w *world) snapshot() snapshot {
	xmin := w.nextXid
	var xip []string
	for x := uint64(3); x < w.nextXid; x++ {
		for _, t := range w.txs {
			if t.xid == x && !t.over {
				xip = append(xip, fmt.Sprint(x))
				xmin = min(xmin, x)
			}
		}
	}
	s, err := parseSnapshot(fmt.Sprintf("%d:%d:%s", xmin, w.nextXid, strings.Join(xip, ",")))
	if err != nil {
		panic(err)
	}
	return s
}

// steps returns every state that can follow.
func (w *world) steps() []*world {
	var next []*world
	for i := range w.txs {
		next = append(next, w.advance(i)...)
	}
	if w.fence {
		next = append(next, w.fenceSteps()...)
	} else {
		next = append(next, w.windowSteps()...)
	}
	if w.checkpoints < 1 && !w.halfway {
		c := w.clone()
		c.durable = c.pos
		c.durableSafe = c.bounds.safe
		c.durable.holes = slices.Clone(c.pos.holes)
		for i := range c.durable.holes {
			c.durable.holes[i].by = nil
		}
		c.checkpoints++
		next = append(next, c)
	}
	if w.crashes < 1 {
		c := w.clone()
		c.pos, c.known, c.listed, c.halfway, c.stale, c.shared = c.durable, &writers{}, false, false, nil, nil
		c.bounds = bounds{seen: c.durableSafe, waitFor: c.durableSafe, safe: c.bounds.safe}
		c.crashes++
		next = append(next, c)
	}
	return next
}

// advance lets transaction i take its next step, if it can.
func (w *world) advance(i int) []*world {
	ops := w.programs[i]
	if w.txs[i].pc > len(ops) {
		return nil
	}
	c := w.clone()
	t := &c.txs[i]
	if t.pc == len(ops) { // the second half of the end: locks are released
		t.pc++
		t.name, t.key = "", 0
		return []*world{c}
	}
	o := ops[t.pc]
	t.pc++
	takeXid := func() {
		if t.xid == 0 {
			t.xid = c.nextXid
			c.nextXid++
		}
	}
	switch o.kind {
	case 'x':
		takeXid()
	case 'k':
		for _, other := range w.txs {
			if other.key == o.key {
				return nil // waits
			}
		}
		t.key = o.key
	case 'l':
		t.name = fmt.Sprint("v", i)
	case 'i':
		t.early = c.nextID
		c.nextID++
		if !w.bugs.noSequenceLock { // nextval locks the sequence
			t.name = fmt.Sprint("v", i)
		}
	case 'r':
		id := t.early
		if id == 0 {
			id = c.nextID
			c.nextID++
		}
		t.early = 0
		takeXid()
		seq := c.keys[o.key] + 1
		for _, r := range t.rows {
			if r.key == o.key {
				seq++
			}
		}
		t.rows = append(t.rows, modelRow{id, t.xid, o.key, seq})
	case 'u': // for the mutations: a PostgreSQL that releases locks before a commit shows
		t.name, t.key = "", 0
	case 'p':
		t.prepared = true
		if t.name != "" {
			t.name = fmt.Sprint("p", i)
		}
	case 'e':
		rolledBack := c.clone()
		r := &rolledBack.txs[i]
		r.over, r.rows = true, nil
		c.makeVisible(i)
		return []*world{c, rolledBack}
	}
	return []*world{c}
}

func (w *world) makeVisible(i int) {
	t := &w.txs[i]
	t.visible, t.over = true, true
	for _, r := range t.rows {
		w.keys[r.key] = max(w.keys[r.key], r.seq)
	}
}

func (w *world) deliver(r modelRow) {
	if w.seen[r.id] {
		return // a repetition, after a crash
	}
	if r.id <= w.bounds.safe {
		w.fail = fmt.Sprintf("row %d came and %d was said to be settled", r.id, w.bounds.safe)
	}
	if r.seq < w.high[r.key] {
		w.fail = fmt.Sprintf("row %d of key %d came after a later one", r.id, r.key)
	}
	w.seen[r.id] = true
	w.high[r.key] = max(w.high[r.key], r.seq)
}

// windowSteps: one statement takes the snapshot and reads; a window that is cut
// short goes on by filtering.
func (w *world) windowSteps() []*world {
	c := w.clone()
	var rows []modelRow
	hi := c.pos.hi
	if !c.pos.open {
		hi = c.snapshot()
		if w.claims {
			c.bounds.seen = c.nextID - 1
			if !w.bugs.staleListing && c.bounds.seen != w.bounds.seen {
				c.shared = nil
			}
		}
		if w.bugs.numberBehindList && c.bounds.wait == nil && c.bounds.closing > 0 {
			c.bounds.closing = c.nextID - 1
		}
	}
	if w.bugs.lateHi { // the snapshot is taken in a statement of its own, after the read
		if !c.halfway {
			c.stale, c.halfway = c.visibleRows(), true
			return []*world{c}
		}
		rows, c.stale, c.halfway = c.stale, nil, false
	} else {
		rows = c.visibleRows()
	}
	rows = slices.DeleteFunc(rows, func(r modelRow) bool {
		if w.bugs.noXip && r.xid < c.pos.lo.xmax {
			return true
		}
		return c.pos.lo.sees(r.xid) || r.id <= c.pos.at || (c.pos.open && !hi.sees(r.xid))
	})
	if w.bugs.byXid {
		slices.SortFunc(rows, func(a, b modelRow) int { return int(a.xid) - int(b.xid) })
	}
	cut := w.limit > 0 && len(rows) > w.limit
	if cut {
		rows = rows[:w.limit]
	}
	for _, r := range rows {
		c.deliver(r)
	}
	if cut {
		c.pos = mark{lo: c.pos.lo, hi: hi, open: true, at: rows[len(rows)-1].id}
	} else {
		c.pos = mark{lo: hi, at: table.Beginning}
		c.bounds.safe = max(c.bounds.safe, c.bounds.closing)
		c.bounds.closing = 0
	}
	if !w.boundDue() {
		return []*world{c}
	}
	next := []*world{w.bound(w.holders()), c}
	if w.shared != nil {
		return append(next, w.bound(w.shared))
	}
	other := w.clone()
	other.shared = w.holders()
	return append(next, other)
}

// boundDue and bound are horizon.advance, which comes before a window is opened.
func (w *world) boundDue() bool {
	return w.claims && !w.pos.open && !w.halfway && (w.bounds.wait != nil || w.bounds.seen > w.bounds.waitFor)
}

func (w *world) bound(now *writers) *world {
	c := w.clone()
	newly := w.newly(now)
	c.shared = nil
	b := &c.bounds
	if b.wait == nil {
		b.wait, b.waitFor = now, b.seen
	} else {
		b.wait = b.wait.remaining(now, newly)
	}
	if len(b.wait.list) == 0 || w.bugs.oneListing {
		b.wait, b.closing = nil, b.waitFor
	}
	c.known = now
	return c
}

// fenceSteps: the list of locks and the read are statements of their own, and
// anything can happen between them.
func (w *world) fenceSteps() []*world {
	var next []*world
	if len(w.pos.holes) > 0 && (!w.listed || w.bugs.listAfterRead) && !w.halfway {
		next = append(next, w.list())
	}
	if len(w.pos.holes) == 0 || w.listed || w.halfway || w.bugs.listAfterRead {
		next = append(next, w.readFence()...)
	}
	return next
}

// holders is what a listing returns.
func (w *world) holders() *writers {
	now := &writers{}
	for _, t := range w.txs {
		if t.name == "" {
			continue
		}
		now.list = append(now.list, writer{vxid: t.name, prepared: t.prepared, upTo: math.MaxInt64})
	}
	return now
}

// newly returns the prepared transactions that were not known at the last listing.
func (w *world) newly(now *writers) (newly []writer) {
	for _, x := range now.list {
		if x.prepared && !w.known.has(x.vxid) && !w.bugs.forgetPrepared {
			newly = append(newly, x)
		}
	}
	return newly
}

func (w *world) list() *world {
	c := w.clone()
	now := c.holders()
	newly := c.newly(now)
	c.pos.holes = slices.Clone(c.pos.holes)
	for i := range c.pos.holes {
		h := &c.pos.holes[i]
		switch {
		case w.bugs.closeAtOnce:
			h.by = &writers{}
		case h.by == nil:
			h.by = now
		default:
			h.by = h.by.remaining(now, newly)
		}
	}
	if w.bugs.listAfterRead { // what is final is closed without being read again
		c.pos.holes = slices.DeleteFunc(c.pos.holes, func(h hole) bool { return len(h.by.list) == 0 })
	}
	c.known, c.listed = now, true
	return c
}

func (w *world) readFence() []*world {
	c := w.clone()
	rows := c.visibleRows()
	if w.bugs.twoSnapshots { // the tail is read first, in a statement of its own
		if !c.halfway {
			c.halfway = true
			c.stale = slices.DeleteFunc(rows, func(r modelRow) bool { return r.id <= c.pos.last })
			return []*world{c}
		}
		holes := slices.DeleteFunc(rows, func(r modelRow) bool { return r.id > c.pos.last })
		tail := c.stale
		rows = append(tail, holes...)
		c.stale, c.halfway = nil, false
	}
	rows = slices.DeleteFunc(rows, func(r modelRow) bool {
		return r.id <= c.pos.last && !slices.ContainsFunc(c.pos.holes, func(h hole) bool { return h.lo <= r.id && r.id <= h.hi })
	})
	covered := int64(math.MaxInt64)
	if w.limit > 0 && len(rows) > w.limit {
		rows = rows[:w.limit]
		covered = rows[len(rows)-1].id
	}
	var ids []int64
	for _, r := range rows {
		c.deliver(r)
		ids = append(ids, r.id)
	}
	slices.Sort(ids)
	c.pos.holes = fold(c.pos.holes, ids, c.pos.last, covered)
	if n := len(ids); n > 0 {
		c.pos.last = max(c.pos.last, ids[n-1])
	} else if w.claims && c.nextID-1 > c.pos.last { // fence.tail
		c.pos.holes = append(c.pos.holes, hole{lo: c.pos.last + 1, hi: c.nextID - 1})
		c.pos.last = c.nextID - 1
	}
	if w.claims {
		c.bounds.safe = max(c.bounds.safe, c.pos.complete())
	}
	c.listed = false
	return []*world{c}
}

// lost lets the reader go on alone until nothing changes, and returns a row that
// was committed and has not come.
func (w *world) lost() string {
	c := w.clone()
	for range 16 {
		if c.fence {
			c = c.fenceSteps()[0]
		} else {
			if c.boundDue() {
				c = c.bound(c.holders())
			}
			steps := c.windowSteps()
			c = steps[min(1, len(steps)-1)]
		}
		if c.fail != "" {
			return c.fail
		}
	}
	for _, r := range c.visibleRows() {
		if !c.seen[r.id] {
			return fmt.Sprintf("row %d of key %d was committed and never came", r.id, r.key)
		}
	}
	if c.claims && c.bounds.safe != c.nextID-1 {
		return fmt.Sprintf("settled up to %d for ever, and %d ids were handed out", c.bounds.safe, c.nextID-1)
	}
	return ""
}

// explore walks through all states and returns their number and the first
// violation.
func explore(programs []string, fence bool, limit int, claims bool, b bugs) (states int, violation string) {
	w := &world{bugs: b, fence: fence, claims: claims, limit: limit, nextID: 1, nextXid: 3, known: &writers{}, seen: map[int64]bool{}, pos: mark{lo: nothing, at: table.Beginning}}
	w.durable = w.pos
	for _, p := range programs {
		w.programs = append(w.programs, program(p))
		w.txs = append(w.txs, modelTx{})
	}
	visited := map[string]bool{w.key(): true}
	stack := []*world{w}
	for len(stack) > 0 {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		states++
		over := true
		for i, t := range at.txs {
			over = over && t.pc > len(at.programs[i])
		}
		if over {
			if at.fail = at.lost(); at.fail != "" {
				return states, at.fail
			}
		}
		for _, next := range at.steps() {
			if next.fail != "" {
				return states, next.fail
			}
			if k := next.key(); !visited[k] {
				visited[k] = true
				stack = append(stack, next)
			}
		}
	}
	return states, ""
}

// Transactions that fight for a key, one with an early id, one of another key; and
// two-phase commit.
var modelled = map[string][]string{
	"one key and a stranger":        {"x k1 l r1 e", "k1 l r1 e", "l r2 e"},
	"two rows each":                 {"l k1 r1 r1 e", "k1 l r1 e"},
	"a prepared one":                {"l r1 p e", "l r2 e", "k3 l r3 e"},
	"prepared while holding a key":  {"k1 l r1 p e", "x k1 l r1 e"},
	"the same key, three times":     {"k1 l r1 e", "k1 l r1 e", "k1 l r1 e"},
	"a long one that writes at all": {"x l r2 k1 r1 e", "k1 l r1 e"},
}

func TestModel(t *testing.T) {
	t.Parallel()
	for name, programs := range modelled {
		for _, fence := range []bool{false, true} {
			for _, limit := range []int{0, 1} {
				t.Run(fmt.Sprintf("%s/fence=%v/limit=%d", name, fence, limit), func(t *testing.T) {
					t.Parallel()
					if limit > 0 && len(programs) > 2 && name != "one key and a stranger" {
						t.Skip("too many states for what it adds")
					}
					states, violation := explore(programs, fence, limit, false, bugs{})
					if violation != "" {
						t.Fatalf("after %d states: %s", states, violation)
					}
					t.Logf("%d states", states)
				})
			}
		}
	}
}

// TestModelOfClaims: no row comes for the first time below an id that was reported as
// settled. In the end all ids are settled, those that were rolled back too.
func TestModelOfClaims(t *testing.T) {
	t.Parallel()
	for name, programs := range map[string][]string{
		"two":                 {"l r1 e", "l r2 e"},
		"two rows":            {"l r1 r1 e", "l r2 e"},
		"a prepared one":      {"l r1 p e", "l r2 e"},
		"an id taken by hand": {"i l r1 e", "l r2 e"},
	} {
		for _, fence := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/fence=%v", name, fence), func(t *testing.T) {
				t.Parallel()
				states, violation := explore(programs, fence, 0, true, bugs{})
				if violation != "" {
					t.Fatalf("after %d states: %s", states, violation)
				}
				t.Logf("%d states", states)
			})
		}
	}
}

// TestModelFindsMutations breaks one thing at a time: each must be found.
func TestModelFindsMutations(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		programs string // of modelled, or itself
		fence    bool
		bugs     bugs
		want     string
	}{
		"order by xid":                                {"one key and a stranger", false, bugs{byXid: true}, "after a later one"},
		"running transactions are forgotten":          {"one key and a stranger", false, bugs{noXip: true}, "never came"},
		"the snapshot is newer than the read":         {"one key and a stranger", false, bugs{lateHi: true}, "never came"},
		"locks are listed behind the read":            {"one key and a stranger", true, bugs{listAfterRead: true}, "never came"},
		"holes are closed at once":                    {"one key and a stranger", true, bugs{closeAtOnce: true}, "never came"},
		"holes and tail in two snapshots":             {"one key and a stranger", true, bugs{twoSnapshots: true}, "after a later one"},
		"a prepared transaction is another one":       {"a prepared one", true, bugs{forgetPrepared: true}, "never came"},
		"an id is taken before the table's lock":      {"i l r1 e; l r2 e", true, bugs{noSequenceLock: true}, "never came"},
		"the same, by windows":                        {"i l r1 e; l r2 e", false, bugs{noSequenceLock: true}, "said to be settled"},
		"the sequence is read behind the locks":       {"l r1 e;l r2 e", false, bugs{numberBehindList: true}, "said to be settled"},
		"nobody is waited for":                        {"l r1 e;l r2 e", false, bugs{oneListing: true}, "said to be settled"},
		"the listing is older than the sequence":      {"l r1 e;l r2 e", false, bugs{staleListing: true}, "said to be settled"},
		"a prepared one, by windows":                  {"l r1 p e;l r2 e", false, bugs{forgetPrepared: true}, "said to be settled"},
		"the table's lock goes before a commit shows": {"l r1 u e; l r2 e", true, bugs{}, "never came"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			programs := modelled[tc.programs]
			if programs == nil {
				programs = strings.Split(tc.programs, ";")
			}
			states, violation := explore(programs, tc.fence, 0, strings.Contains(tc.want, "settled"), tc.bugs)
			if !strings.Contains(violation, tc.want) || violation == "" {
				t.Fatalf("%d states, violation %q, want one with %q", states, violation, tc.want)
			}
			t.Logf("found after %d states: %s", states, violation)
		})
	}
}
