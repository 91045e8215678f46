package scan

import (
	"context"
	_ "embed"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/together"
)

var (
	//go:embed sql/locks.sql
	locksSQL string
	//go:embed sql/sessions.sql
	sessionsSQL string
)

// locks lists the transactions that hold a writer's lock on an outbox or on the sequence
// of its ids. An INSERT takes the first before it takes an id, and a nextval by hand
// takes the second. Both are kept until the commit is visible. So a transaction that is
// not listed has either ended, and every later snapshot shows its rows, or it has not
// taken an id yet.
type locks struct {
	sql   string
	last  string // reads the sequence; "" = not readable
	at    time.Time
	began time.Time // when the last listing began
	cost  time.Duration
	known *writers // of the last listing
}

// listing is what a listing of locks has found. Its writers may have taken any id.
type listing struct {
	began   time.Time
	writers []writer
	last    int64 // of the sequence, read after the list; [math.MaxInt64] = not read
}

// listings are those of all scanners of the process. A listing costs a few milliseconds of
// the server where a thousand pipelines hold their locks, and they read a row at once.
var listings together.Group[string, *listing]

// writers is a set of transactions. It never changes, so that holes can share it.
type writers struct{ list []writer }

type writer struct {
	vxid     string
	prepared bool
	idle     string // since when it has been idle in its transaction; "" = it is not, or not readable
	upTo     int64  // it has taken no id above this one
}

func newLocks(t *table.Table) locks {
	oid := strconv.FormatUint(uint64(t.OID), 10)
	seq := strconv.FormatUint(uint64(t.Sequence.OID), 10)
	relations := `ARRAY[` + oid + `, ` + seq + `]::oid[]`
	if t.Partitioned {
		// An INSERT into a partition by its own name locks only that.
		relations = `(ARRAY(SELECT relid FROM pg_partition_tree(` + oid + `))::oid[] || ` + seq + `::oid)`
	}
	l := locks{known: &writers{}, sql: strings.ReplaceAll(locksSQL, "{relations}", relations)}
	if t.Sequence.Cache > 1 {
		l.sql += ` UNION ALL ` + strings.ReplaceAll(sessionsSQL, "{oid}", oid)
	}
	if t.Sequence.Readable {
		l.last = t.Sequence.LastSQL()
	}
	return l
}

// list returns the transactions that hold a lock at some moment after since. It also returns
// the prepared ones among them that are new since the last listing.
//
// The listing may be that of another scanner of the process, which is as good as an own one:
//
//  1. A transaction has taken an id before since, and has not ended. It holds its lock, and
//     every listing that begins after since has it.
//  2. It ends after a listing. The scanner waits for it until the next one, as it does if it
//     ends just after an own listing.
//  3. Another scanner is connected to another server, as in a failover. Listings are kept
//     apart by [Session.Server], so each scanner gets one of the server that it reads.
func (l *locks) list(ctx context.Context, db DB, since time.Time) (now *writers, newlyPrepared []writer, err error) {
	begun := time.Now()
	ask := func(ctx context.Context) (*listing, error) { return l.ask(ctx, db) }
	var found *listing
	if s, ok := db.(Session); ok && s.Server() != "" {
		found, err = listings.Do(ctx, s.Server()+l.sql, since, ask)
	} else {
		found, err = ask(ctx)
	}
	if err != nil {
		return nil, nil, err
	}
	now = l.limit(found)
	l.at, l.began = time.Now(), found.began
	l.cost = l.at.Sub(begun)
	for _, w := range now.list {
		if w.prepared && !l.known.has(w.vxid) {
			newlyPrepared = append(newlyPrepared, w)
		}
	}
	l.known = now
	return now, newlyPrepared, nil
}

// ask lists the transactions that hold a lock.
func (l *locks) ask(ctx context.Context, db DB) (*listing, error) {
	found := &listing{began: time.Now(), last: math.MaxInt64}
	now := &writers{}
	err := db.Query(ctx, l.sql, nil, nil, func(v [][]byte) (bool, error) {
		if !now.has(string(v[0])) {
			now.list = append(now.list, writer{vxid: string(v[0]), prepared: v[1][0] == 't', idle: string(v[2]), upTo: math.MaxInt64})
		}
		return true, nil
	})
	if found.writers = now.list; err == nil && l.last != "" && slices.ContainsFunc(now.list, writer.rests) {
		found.last, err = queryID(ctx, db, l.last)
	}
	return found, err
}

// rests reports whether the transaction cannot take an id while it is listed unchanged.
func (w writer) rests() bool { return w.prepared || w.idle != "" }

func (w *writers) has(vxid string) bool {
	return slices.ContainsFunc(w.list, func(x writer) bool { return x.vxid == vxid })
}

// remaining returns the transactions of w that have not ended. PREPARE TRANSACTION makes
// a transaction leave the list under one name and enter it under another. So all newly
// prepared transactions take the place of one that has left.
func (w *writers) remaining(now *writers, newlyPrepared []writer) *writers {
	next, vanished := &writers{}, false
	for _, x := range w.list {
		if now.has(x.vxid) {
			next.list = append(next.list, x)
		} else if !x.prepared {
			vanished = true
		}
	}
	if vanished {
		next.list = append(next.list, newlyPrepared...)
	} else if len(next.list) == len(w.list) {
		return w
	}
	return next
}

// limit bounds the ids of transactions that cannot have taken one since an earlier
// listing. These are prepared ones, and those of sessions that have been idle since.
// The sequence is read after the list, so all ids they have taken are below its value.
// Without a bound, a session that idles in its transaction would keep every later gap
// open.
func (l *locks) limit(found *listing) *writers {
	now := &writers{list: slices.Clone(found.writers)} // scanners share the listing
	for i := range now.list {
		w := &now.list[i]
		if l.last == "" || !w.rests() {
			continue
		}
		w.upTo = found.last
		for _, was := range l.known.list {
			if was.vxid == w.vxid && was.prepared == w.prepared && was.idle == w.idle {
				w.upTo = was.upTo
			}
		}
	}
	return now
}

// beyond returns the transactions that may have taken an id from lo on.
func (w *writers) beyond(lo int64) *writers {
	if !slices.ContainsFunc(w.list, func(x writer) bool { return x.upTo < lo }) {
		return w
	}
	next := &writers{}
	for _, x := range w.list {
		if x.upTo >= lo {
			next.list = append(next.list, x)
		}
	}
	return next
}

// maxResting bounds the transactions that a checkpoint has.
const maxResting = 200

// resting returns the transactions whose ids are bounded. The checkpoint has them, so
// that the bound survives a restart.
func (w *writers) resting() []writer {
	var list []writer
	for _, x := range w.list {
		if x.upTo != math.MaxInt64 && len(list) < maxResting {
			list = append(list, x)
		}
	}
	return list
}
