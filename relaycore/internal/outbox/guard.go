package outbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// guardEvery is how often a running source asks whether the table is still the
// same and the server still the same. After an error it asks before it reads.
const guardEvery = time.Second

// whereabouts identifies the server, the database and the table.
func whereabouts(ctx context.Context, q querier, t *table) (origin, error) {
	o := origin{Table: t.oid, File: t.filenode, Sequence: t.idOwner.filenode}
	var recovering bool
	err := q.QueryRow(ctx, `SELECT oid, pg_is_in_recovery() FROM pg_database WHERE datname = current_database()`).Scan(&o.Database, &recovering)
	if err != nil {
		return o, fmt.Errorf("identify database: %w", err)
	}
	if recovering {
		return o, errors.New("the server is a standby: checkpoints can only be kept on the primary; put both hosts into the URL and add target_session_attrs=read-write")
	}
	if o.System, err = optional(ctx, q, `SELECT system_identifier::text FROM pg_control_system()`); err != nil {
		return o, fmt.Errorf("identify server: %w", err)
	}
	if o.Timeline, err = optional(ctx, q, timelineSQL); err != nil {
		return o, fmt.Errorf("identify server: %w", err)
	}
	return o, nil
}

// timelineSQL changes its answer when a standby is promoted.
const timelineSQL = `SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`

// optional runs a query that a plain role may not be allowed to run.
func optional(ctx context.Context, q querier, sql string) (string, error) {
	var v string
	err := q.QueryRow(ctx, sql).Scan(&v)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "42501" || pg.Code == "42883" || pg.Code == "0A000") {
		return "", nil
	}
	return v, err
}

// choose picks the strategy and checks what it relies on.
func (s *Source) choose(ctx context.Context, q querier, t *table) (string, error) {
	mode := s.cfg.Settings.Strategy
	if mode == "auto" {
		mode = modeFence
		if t.xid != "" && t.xidIndexed {
			mode = modeWindow
		} else if t.xid != "" {
			s.log.Warn("the outbox has a transaction id column without an index, so it is read by the gap fence",
				"table", t.qualified(), "cure", "CREATE INDEX CONCURRENTLY ON "+t.qualified()+" ("+quote(t.xid)+")")
		}
	}
	if mode == modeWindow {
		return mode, s.checkWindows(ctx, q, t)
	}
	return mode, checkFence(t)
}

// addXid is the call that makes an outbox readable by windows.
func addXid(t *table) string {
	return "SELECT pgtrickle.outbox_add_xid(" + literal(t.qualified()) + ")"
}

func (s *Source) checkWindows(ctx context.Context, q querier, t *table) error {
	add := addXid(t) + " adds one"
	switch {
	case t.xid == "":
		return relay.Fatal(fmt.Errorf("outbox_strategy window: %s has no column of type xid8: %s", t.qualified(), add))
	case t.columns[t.xid].typ != "xid8":
		return relay.Fatal(fmt.Errorf("outbox_strategy window: column %s of %s has type %s and not xid8: %s", t.xid, t.qualified(), t.columns[t.xid].typ, add))
	case !t.columns[t.xid].notNull:
		return relay.Fatal(fmt.Errorf("column %s of %s may be null, and a row without it is never seen: %s fills it and sets it NOT NULL", t.xid, t.qualified(), addXid(t)))
	case !t.xidIndexed:
		return relay.Fatal(fmt.Errorf("column %s of %s has no index: CREATE INDEX CONCURRENTLY ON %s (%s)", t.xid, t.qualified(), t.qualified(), quote(t.xid)))
	}
	accept := s.cfg.Settings.SequenceCache == "accept"
	if err := checkSequence(t, "in which rows of one key commit", accept); err != nil {
		if t.idOwner.cache > 1 && !accept {
			err = relay.Fatal(fmt.Errorf("%w; or set sequence_cache to accept, if each key is written by one session at a time", err))
		}
		return err
	}
	if t.idOwner.cache > 1 {
		s.log.Warn("the sequence hands out ids in bulk: rows of a key come in order only if one session at a time writes the key", "table", t.qualified(), "sequence", t.idOwner.name, "cache", t.idOwner.cache)
	}
	// Rows that were copied from another cluster may bear numbers that this one
	// has yet to give out.
	var future string
	err := q.QueryRow(ctx, fmt.Sprintf(`SELECT coalesce((SELECT m.%[1]s::text FROM (SELECT %[1]s FROM %[2]s ORDER BY %[1]s DESC LIMIT 1) m WHERE m.%[1]s >= pg_snapshot_xmax(pg_current_snapshot())), '')`,
		quote(t.xid), t.qualified())).Scan(&future)
	if err != nil {
		return fmt.Errorf("look at the newest transaction of %s: %w", t.qualified(), err)
	}
	if future != "" {
		return relay.Fatal(fmt.Errorf("rows of %s bear transaction ids of another cluster, up to %s: the table was restored or copied; UPDATE %s SET %s = '3' WHERE %s >= pg_snapshot_xmax(pg_current_snapshot()), and set on_restore to rebase",
			t.qualified(), future, t.qualified(), quote(t.xid), quote(t.xid)))
	}
	return nil
}

// checkFence checks what can be checked of the fence's conditions: ids come from
// the table's own sequence, in steps of one, at the time of the insert.
func checkFence(t *table) error {
	switch {
	case !t.idUnique:
		return relay.Fatal(fmt.Errorf("ids of %s are not unique: CREATE UNIQUE INDEX CONCURRENTLY ON %s (%s)", t.qualified(), t.qualified(), quote(t.id)))
	case t.idOwner.oid == 0:
		return relay.Fatal(fmt.Errorf("column %s of %s does not take its values from a sequence, so gaps in it say nothing: ALTER TABLE %s ALTER COLUMN %s ADD GENERATED ALWAYS AS IDENTITY, or have it read by snapshot windows: %s adds the column for them",
			t.id, t.qualified(), t.qualified(), quote(t.id), addXid(t)))
	}
	return checkSequence(t, "in which rows were written", false)
}

// checkSequence checks that ids come in the order in which they are taken. cached
// says that one session may take several at once.
func checkSequence(t *table, order string, cached bool) error {
	q := t.idOwner
	switch {
	case q.oid == 0:
		return nil
	case q.cache != 1 && !cached:
		return relay.Fatal(fmt.Errorf("sequence %s hands out %d ids to a session at once (CACHE), so ids are not in the order %s: ALTER SEQUENCE %s CACHE 1", q.name, q.cache, order, q.name))
	case q.increment < 1:
		return relay.Fatal(fmt.Errorf("sequence %s counts by %d: ALTER SEQUENCE %s INCREMENT BY 1", q.name, q.increment, q.name))
	case q.cycle:
		return relay.Fatal(fmt.Errorf("sequence %s would begin again at its end: ALTER SEQUENCE %s NO CYCLE", q.name, q.name))
	}
	return nil
}

// starting is where a source begins.
type starting struct {
	mark    mark
	safe    int64
	part    [2]int64
	done    [][3]int64
	skip    map[int64][][2]int64
	audit   audit
	gap     gap   // ids behind the checkpoint that are not there
	expired int64 // see state.Expired
	reused  bool  // see Source.Reused
}

// startFrom turns a checkpoint into a position in this table, in this database.
func (s *Source) startFrom(ctx context.Context, q querier, t *table, here origin, mode string, st *state, lastID int64) (starting, error) {
	start := starting{safe: minID(t)}
	lowest, err := firstID(ctx, q, t)
	if err != nil {
		return start, err
	}
	if lowest != nil {
		start.safe = min(start.safe, *lowest-1)
	}
	if st == nil {
		offset, err := s.offset(ctx, q)
		if err != nil {
			return start, err
		}
		start.safe = max(start.safe, offset, lastID)
		start.gap, err = gapBehind(ctx, q, t, max(offset, lastID), lowest)
		return fresh(start, mode), err
	}
	was := st
	if st, err = s.compare(t, here, was); err != nil {
		return start, err
	}
	start.reused = st != was || s.promoted(here, was)
	if st == nil { // the table's ids begin again
		return fresh(start, mode), nil
	}
	start.safe = st.Safe
	if st.V == 0 || st.Mode != mode { // rebased, or read by the other strategy until now
		return fresh(start, mode), nil
	}
	if start.mark, err = st.mark(); err != nil {
		return start, err
	}
	if mode == modeWindow {
		back, err := s.checkSnapshot(ctx, q, &start.mark)
		if err != nil {
			return start, err
		}
		start.reused = start.reused || back
	}
	start.skip = make(map[int64][][2]int64)
	if len(st.Part) == 2 {
		start.skip[st.Part[0]] = [][2]int64{{0, st.Part[1]}}
	}
	for _, d := range st.Done {
		if len(d) == 3 {
			start.skip[d[0]] = append(start.skip[d[0]], [2]int64{d[1], d[2]})
			start.done = append(start.done, [3]int64(d))
		}
	}
	start.audit.parse(st.Audit)
	start.expired = st.Expired
	start.gap, err = gapBehind(ctx, q, t, st.Safe, lowest)
	return start, err
}

// fresh begins behind start.safe, knowing of no window and no hole.
func fresh(start starting, mode string) starting {
	if mode == modeWindow {
		start.mark = mark{lo: nothing, at: start.safe}
	} else {
		start.mark = mark{last: start.safe, at: beginning}
	}
	start.audit = audit{from: start.safe}
	return start
}

// offset is the public view of progress, which an earlier relay may have left.
func (s *Source) offset(ctx context.Context, q querier) (int64, error) {
	var readable bool
	if err := q.QueryRow(ctx, `SELECT coalesce(has_table_privilege(to_regclass('pgtrickle.relay_consumer_offsets'), 'SELECT'), false)`).Scan(&readable); err != nil || !readable {
		return beginning, err
	}
	var id int64
	err := q.QueryRow(ctx, `SELECT last_change_id FROM pgtrickle.relay_consumer_offsets WHERE relay_group_id = $1 AND pipeline_id = $2`, s.cfg.Group, s.cfg.Pipeline).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return beginning, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read relay_consumer_offsets: %w", err)
	}
	return id, nil
}

// compare compares where a checkpoint was made with where we are. It returns the
// checkpoint, a rebased one, or nil when the table's ids begin again.
func (s *Source) compare(t *table, here origin, st *state) (*state, error) {
	was := st.Of
	foreign := ""
	switch {
	case was.System != "" && here.System != "" && was.System != here.System:
		foreign = "server " + was.System + " and this is server " + here.System
	case was.Database != here.Database:
		foreign = "database " + strconv.FormatUint(uint64(was.Database), 10) + " and this is database " + strconv.FormatUint(uint64(here.Database), 10)
	}
	if foreign != "" {
		if s.cfg.Settings.OnRestore != "rebase" {
			return nil, relay.Fatal(fmt.Errorf("the checkpoint was made in %s: this is a restored or cloned copy, and a relay here may send to the original's receivers; "+
				"disable the pipeline, or set on_restore to rebase, which goes on behind id %d and may repeat rows", foreign, st.Safe))
		}
		s.log.Warn("going on in another database than the checkpoint's", "checkpoint", foreign, "behind_id", st.Safe)
		return &state{Safe: st.Safe}, nil
	}
	replaced := was.Table != here.Table
	restarted := was.Sequence != here.Sequence && was.File != here.File && !t.partitioned
	if replaced || restarted {
		s.log.Error("the outbox table was created anew or truncated with its ids restarted: reading it from its beginning; "+
			"receivers that remember message ids take new rows for repetitions where ids repeat",
			"table", t.qualified(), "cure", fmt.Sprintf("ALTER SEQUENCE %s RESTART WITH %d", t.idOwner.name, st.Safe+1))
		return nil, nil //nolint:nilnil // documented
	}
	return st, nil
}

// promoted reports whether a checkpoint was made on another timeline: before a
// standby was promoted, or the server restored to an earlier time.
func (s *Source) promoted(here origin, st *state) bool {
	if st.Of.Timeline == "" || here.Timeline == "" || st.Of.Timeline == here.Timeline {
		return false
	}
	s.log.Warn("a standby was promoted, or the server restored, since the checkpoint: going on behind it, which may repeat rows; "+
		"where rows were lost their ids are given out again, and receivers that remember message ids take new rows for repetitions",
		"timeline", here.Timeline, "checkpoint", st.Of.Timeline, "behind_id", st.Safe)
	return true
}

// checkSnapshot refuses a checkpoint that knows transactions which this server
// has not had yet, or reports that it goes back to where it is safe.
func (s *Source) checkSnapshot(ctx context.Context, q querier, m *mark) (back bool, err error) {
	var text string
	if err := q.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&text); err != nil {
		return false, fmt.Errorf("take snapshot: %w", err)
	}
	now, err := parseSnapshot(text)
	if err != nil {
		return false, err
	}
	known := m.lo.xmax
	if m.open {
		known = max(known, m.hi.xmax)
	}
	if now.xmax >= known {
		return false, nil
	}
	if s.cfg.Settings.OnRestore != "rebase" {
		from := m.lo
		if m.open {
			from = m.hi
		}
		return false, relay.Fatal(fmt.Errorf("%w; disable the pipeline, or set on_restore to rebase, which may repeat rows", &errBackwards{from: from.text, to: text}))
	}
	s.log.Warn("the database's snapshot went backwards; reading from the last safe id", "checkpoint", m.lo.text, "now", text)
	*m = mark{lo: nothing, at: s.floor()}
	return true, nil
}

func (s *Source) floor() int64 {
	if st := s.settler.Load(); st != nil {
		return st.safe
	}
	if st, err := parseState(s.cfg.Checkpoint); err == nil && st != nil {
		return st.Safe
	}
	return beginning
}

// guardSQL identifies the table and, with the expression that stands for the
// timeline, the server. If the last parameter is true, it asks whether the table can
// be read by windows.
const guardSQL = `SELECT coalesce(to_regclass($1)::oid, 0::oid), coalesce(pg_relation_filenode(to_regclass($1)), 0::oid), coalesce(pg_relation_filenode($2::oid), 0::oid),
	pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN '' ELSE (%s) END,
	$4 AND EXISTS (SELECT FROM pg_attribute a JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		JOIN pg_index i ON i.indrelid = a.attrelid AND i.indkey[0] = a.attnum AND i.indisvalid AND i.indpred IS NULL
		WHERE a.attrelid = to_regclass($1) AND a.atttypid = 'xid8'::regtype AND a.attnotnull AND ($3::text IN ('', a.attname::text)) AND pg_get_expr(d.adbin, d.adrelid) LIKE '%%pg_current_xact_id()%%')`

// quiescent reports whether the fence has settled all that it has read and keeps
// no hole. Then its last id is where windows can go on and repeat nothing.
func (s *Source) quiescent() bool {
	pos, st := s.strategy.position(), s.settler.Load()
	st.mu.Lock()
	defer st.mu.Unlock()
	return s.streaming == nil && !pos.open && len(pos.holes) == 0 && len(st.chunks) == 0 && st.safe == pos.last
}

// guard looks whether the table and the server are still those that the source
// knows. Where they are not, it begins again behind the stored checkpoint. It asks
// on the caller's connection alone: see begin.
func (s *Source) guard(ctx context.Context, conn *pgx.Conn) error {
	var table, file, seq uint32
	var timeline string
	var recovering, windowed bool
	upgradable := s.cfg.Settings.Strategy == "auto" && s.Strategy() == modeFence
	ask := `SELECT ''`
	if s.origin.Timeline != "" { // or it may not be asked for
		ask = timelineSQL
	}
	err := conn.QueryRow(ctx, fmt.Sprintf(guardSQL, ask), s.table.qualified(), s.table.idOwner.oid, s.cfg.Settings.XidColumn, upgradable).Scan(&table, &file, &seq, &recovering, &timeline, &windowed)
	if err != nil {
		s.failed = true
		return fmt.Errorf("look at outbox %s: %w", s.table.qualified(), err)
	}
	if recovering {
		return fmt.Errorf("read outbox %s: the server is a standby", s.table.qualified())
	}
	s.upgrade = windowed
	o := s.origin
	same := table == o.Table && seq == o.Sequence && timeline == o.Timeline
	if same && (file == o.File || s.table.partitioned) && !s.checked.IsZero() {
		s.checked, s.failed = time.Now(), false
		return nil
	}
	if same && !s.checked.IsZero() {
		// Only the table's file is new: VACUUM FULL, or TRUNCATE without a restart
		// of its ids. Neither moves the position.
		s.origin.File = file
		st := s.settler.Load()
		st.mu.Lock()
		st.origin.File = file
		st.mu.Unlock()
		s.checked, s.failed = time.Now(), false
		return nil
	}
	s.log.Warn("the outbox table or the server has changed: going on behind the stored checkpoint", "table", s.table.qualified())
	c, err := s.stored(ctx, conn)
	if err != nil {
		return err
	}
	if err := s.begin(ctx, conn, c); err != nil {
		return fmt.Errorf("open outbox %q again: %w", s.cfg.Outbox, err)
	}
	return nil
}

// stored is the checkpoint as the database has it now: after a failover it may be
// an older one than ours.
func (s *Source) stored(ctx context.Context, conn *pgx.Conn) (relay.Checkpoint, error) {
	var c relay.Checkpoint
	var raw []byte
	err := conn.QueryRow(ctx, `SELECT checkpoint::text, last_id FROM pgtrickle.relay_cursors WHERE relay_group_id = $1 AND direction = 'forward' AND pipeline = $2`, s.cfg.Group, s.cfg.Pipeline).Scan(&raw, &c.LastID)
	var pg *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrNoRows), errors.As(err, &pg) && pg.Code == "42P01":
		// Nothing is stored: all that is known is what was settled here.
		return s.settler.Load().settle(nil), nil
	case err != nil:
		return c, fmt.Errorf("read checkpoint: %w", err)
	}
	c.State = raw
	return c, nil
}
