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
	cost  time.Duration
	known *writers // of the last listing
}

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

// list returns the transactions that hold a lock now, and the prepared ones among them
// that are new since the last listing.
func (l *locks) list(ctx context.Context, db DB) (now *writers, newlyPrepared []writer, err error) {
	begun := time.Now()
	now = &writers{}
	err = db.Query(ctx, l.sql, nil, nil, func(v [][]byte) (bool, error) {
		if !now.has(string(v[0])) {
			now.list = append(now.list, writer{vxid: string(v[0]), prepared: v[1][0] == 't', idle: string(v[2]), upTo: math.MaxInt64})
		}
		return true, nil
	})
	if err != nil {
		return nil, nil, err
	}
	if err := l.limit(ctx, db, now); err != nil {
		return nil, nil, err
	}
	l.at = time.Now()
	l.cost = l.at.Sub(begun)
	for _, w := range now.list {
		if w.prepared && !l.known.has(w.vxid) {
			newlyPrepared = append(newlyPrepared, w)
		}
	}
	l.known = now
	return now, newlyPrepared, nil
}

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
func (l *locks) limit(ctx context.Context, db DB, now *writers) error {
	if l.last == "" || !slices.ContainsFunc(now.list, func(w writer) bool { return w.prepared || w.idle != "" }) {
		return nil
	}
	last, err := queryID(ctx, db, l.last)
	if err != nil {
		return err
	}
	for i := range now.list {
		w := &now.list[i]
		if !w.prepared && w.idle == "" {
			continue
		}
		w.upTo = last
		for _, was := range l.known.list {
			if was.vxid == w.vxid && was.prepared == w.prepared && was.idle == w.idle {
				w.upTo = was.upTo
			}
		}
	}
	return nil
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
