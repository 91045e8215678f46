package outbox

import (
	"context"
	"math"
	"slices"
	"strconv"
	"time"
)

// locks lists the transactions that hold a writer's lock on an outbox or on the
// sequence of its ids. Whoever inserts takes the first before an id, whoever calls
// nextval by hand the second, and both are kept until after the commit has become
// visible; so a transaction that is not listed has either ended, and every later
// snapshot shows what it wrote, or has not taken an id yet.
type locks struct {
	sql   string
	last  string // reads the sequence, where that is allowed
	at    time.Time
	cost  time.Duration
	known *writers // of the last listing
}

// writers is a set of transactions. It is never changed, so that many may share it.
type writers struct{ list []writer }

type writer struct {
	vxid     string
	prepared bool
	idle     string // since when it has been idle in its transaction, "" where it is not, or that is not to be seen
	upTo     int64  // it has taken no id beyond this one
}

func newLocks(t *table) locks {
	oid := strconv.FormatUint(uint64(t.oid), 10)
	seq := strconv.FormatUint(uint64(t.idOwner.oid), 10)
	oids := `ARRAY[` + oid + `, ` + seq + `]::oid[]`
	if t.partitioned {
		// Whoever writes to a partition by its own name locks only that.
		oids = `(ARRAY(SELECT relid FROM pg_partition_tree(` + oid + `))::oid[] || ` + seq + `::oid)`
	}
	l := locks{known: &writers{}, sql: `SELECT l.virtualtransaction, l.pid IS NULL, CASE WHEN a.state LIKE 'idle in transaction%' THEN a.pid || ' ' || a.state_change::text END
		FROM pg_locks l LEFT JOIN pg_stat_get_activity(NULL) a ON a.pid = l.pid
		WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND l.relation = ANY (` + oids + `) AND l.mode = 'RowExclusiveLock' AND l.granted`}
	if t.idOwner.cache > 1 {
		l.sql += ` UNION ALL ` + sessionsSQL(oid)
	}
	if t.idOwner.readable {
		l.last = t.idOwner.lastSQL()
	}
	return l
}

// sessionsSQL lists the sessions of this database, each of which may have taken ids
// for later. Not the relay's own: those of its role if that may not insert, or else
// of its name too. What became of a session's last transaction the locks tell.
func sessionsSQL(table string) string {
	return `SELECT 'session ' || pid, false, NULL FROM pg_stat_activity
		WHERE datid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()
		AND NOT coalesce(usesysid = (SELECT oid FROM pg_roles WHERE rolname = session_user)
			AND (NOT has_table_privilege(session_user, ` + table + `, 'INSERT') OR application_name <> '' AND application_name = current_setting('application_name')), false)`
}

// list returns who holds the lock now, and which prepared transactions among
// them are new since the last listing.
func (l *locks) list(ctx context.Context, db *session) (now *writers, newlyPrepared []writer, err error) {
	begun := time.Now()
	now = &writers{}
	err = db.query(ctx, l.sql, nil, nil, func(v [][]byte) (bool, error) {
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

// limit says how far the ids of those can reach who cannot have taken one since
// an earlier listing: prepared transactions, and sessions that have been idle
// from then to now. The sequence is read behind the list, so that what they have
// taken is below it. Without this a session that idles in its transaction would
// keep every gap open that came after it.
func (l *locks) limit(ctx context.Context, db *session, now *writers) error {
	if l.last == "" || !slices.ContainsFunc(now.list, func(w writer) bool { return w.prepared || w.idle != "" }) {
		return nil
	}
	var last int64
	err := db.query(ctx, l.last, nil, nil, func(v [][]byte) (bool, error) {
		var err error
		last, err = parseID(v[0])
		return true, err
	})
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

// beyond returns who may have taken an id from lo on.
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

// resting returns those whose ids are bounded. They are part of the checkpoint, so
// that a reader which is often restarted knows them too.
func (w *writers) resting() []writer {
	var list []writer
	for _, x := range w.list {
		if x.upTo != math.MaxInt64 && len(list) < 200 {
			list = append(list, x)
		}
	}
	return list
}
