package outbox

import (
	"context"
	"slices"
	"strconv"
	"time"
)

// locks lists the transactions that hold a writer's lock on an outbox. Whoever
// inserts takes the lock before an id and keeps it until after the commit has
// become visible; so a transaction that is not listed has either ended, and every
// later snapshot shows what it wrote, or has not taken an id yet.
type locks struct {
	sql   string
	at    time.Time
	cost  time.Duration
	known *writers // of the last listing
}

// writers is a set of transactions. It is never changed, so that many may share it.
type writers struct{ list []writer }

type writer struct {
	vxid     string
	prepared bool
}

func newLocks(t *table) locks {
	oid := strconv.FormatUint(uint64(t.oid), 10)
	oids := `ARRAY[` + oid + `]::oid[]`
	if t.partitioned {
		// Whoever writes to a partition by its own name locks only that.
		oids = `ARRAY(SELECT relid FROM pg_partition_tree(` + oid + `))::oid[]`
	}
	return locks{known: &writers{}, sql: `SELECT virtualtransaction, pid IS NULL FROM pg_locks
		WHERE locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND relation = ANY (` + oids + `) AND mode = 'RowExclusiveLock' AND granted`}
}

// list returns who holds the lock now, and which prepared transactions among
// them are new since the last listing.
func (l *locks) list(ctx context.Context, db *session) (now *writers, newlyPrepared []writer, err error) {
	begun := time.Now()
	now = &writers{}
	err = db.query(ctx, l.sql, nil, nil, func(v [][]byte) (bool, error) {
		if !now.has(string(v[0])) {
			now.list = append(now.list, writer{string(v[0]), v[1][0] == 't'})
		}
		return true, nil
	})
	if err != nil {
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

// remaining returns who of w has not ended. A transaction that is prepared leaves
// the list under one name and enters it under another: so in place of one that
// has left come all prepared ones that are new.
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
