package inbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Config says which table to write to.
type Config struct {
	Schema  string // empty means pgtrickle
	Table   string // as it is in the catalog; "schema.table" will do
	Source  string // what the source column holds for messages without Origin
	Columns Columns
}

// Columns names the columns to write. An empty name means the one in
// pgtrickle.pgt_inbox_config, else the usual one; "-" means none.
type Columns struct {
	ID          string // event_id
	EventType   string // event_type
	Source      string // source
	AggregateID string // aggregate_id
	Payload     string // payload
	ReceivedAt  string // received_at
	TraceID     string // trace_id
}

// maxBatchBytes keeps the copies of a batch that lie in our buffers and in
// pgx's small; larger batches are not faster.
const maxBatchBytes = 4 << 20

// Sink writes to one inbox table. It is a [relay.Sink].
type Sink struct {
	pool       *pgxpool.Pool
	table      *table
	source     string
	duplicates int
	fresh      int // batches in a row without a duplicate
	closed     bool

	arrays  []array
	values  [][]byte
	formats []int16
	inBatch map[string]struct{} // only where the table cannot tell duplicates in a batch
}

// Open checks the table, its columns, its unique key and the role's privileges.
// What only an operator can mend is an error of class fatal that says how. The
// pool stays the caller's.
func Open(ctx context.Context, pool *pgxpool.Pool, cfg Config) (*Sink, error) {
	t, err := inspect(ctx, pool, cfg)
	if err != nil {
		return nil, classify(err)
	}
	s := &Sink{pool: pool, table: t, source: cfg.Source}
	s.arrays = make([]array, len(t.columns))
	s.values = make([][]byte, len(t.paramOIDs))
	s.formats = make([]int16, len(t.paramOIDs))
	for i := range s.formats {
		s.formats[i] = pgx.BinaryFormatCode
	}
	if t.lookup {
		s.inBatch = make(map[string]struct{})
	}
	return s, nil
}

// Publish inserts batch in one transaction.
func (s *Sink) Publish(ctx context.Context, batch []relay.Message) error {
	if s.closed {
		return fmt.Errorf("insert into %s: sink is closed", s.table.name)
	}
	s.encode(batch)
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return s.fail(err)
	}
	defer conn.Release()
	inserted, err := s.insert(ctx, conn.Conn())
	if err != nil {
		s.fresh = 0
		if statementLost(err) {
			_ = conn.Conn().Close(ctx) // pgx believes the statement is there: only a new connection has it
		}
		return s.fail(err)
	}
	s.fresh++
	if again := len(batch) - inserted; again != 0 {
		s.fresh = 0
		s.duplicates += again
	}
	return nil
}

func (s *Sink) fail(err error) error {
	return classify(fmt.Errorf("insert into %s: %w", s.table.name, err))
}

// trusting is how many batches in a row must have been new before the next one
// is taken to be new too.
const trusting = 16

// insert sends the encoded batch and returns the number of new rows.
//
// ON CONFLICT costs the server a fifth more: each row is looked up first, and
// written in two steps. Duplicates come after a start or a failure, and seldom
// between. So a batch behind many new ones is inserted without it, and once more
// with it when the unique key says no: the first attempt has then left nothing.
func (s *Sink) insert(ctx context.Context, conn *pgx.Conn) (inserted int, err error) {
	if s.table.lookup {
		return s.insertLocked(ctx, conn)
	}
	if s.fresh >= trusting {
		if inserted, err = s.run(ctx, conn, s.table.plain); !isConflict(err) {
			return inserted, err
		}
		s.fresh = 0
	}
	return s.run(ctx, conn, s.table.insert)
}

func (s *Sink) run(ctx context.Context, conn *pgx.Conn, st statement) (int, error) {
	prepared, err := prepare(ctx, conn, st)
	if err != nil {
		return 0, err
	}
	var result *pgconn.ResultReader
	if prepared {
		result = conn.PgConn().ExecPrepared(ctx, st.name, s.values, s.formats, nil)
	} else {
		result = conn.PgConn().ExecParams(ctx, st.sql, s.values, s.table.paramOIDs, s.formats, nil)
	}
	tag, err := result.Close()
	return int(tag.RowsAffected()), err
}

// prepare reports whether st is prepared on conn. A pool that has been told not
// to prepare runs behind a pooler that would mix up prepared statements.
func prepare(ctx context.Context, conn *pgx.Conn, st statement) (bool, error) {
	if conn.Config().DefaultQueryExecMode != pgx.QueryExecModeCacheStatement {
		return false, nil
	}
	_, err := conn.Prepare(ctx, st.name, st.sql)
	return true, err
}

// insertLocked takes the table's advisory lock before it looks up what is there.
// Both statements are one implicit transaction; the second has a snapshot of its
// own, taken when the lock is held.
func (s *Sink) insertLocked(ctx context.Context, conn *pgx.Conn) (int, error) {
	prepared, err := prepare(ctx, conn, s.table.insert)
	if err != nil {
		return 0, err
	}
	p := conn.PgConn().StartPipeline(ctx)
	p.SendQueryParams(s.table.lock, nil, nil, nil, nil)
	if prepared {
		p.SendQueryPrepared(s.table.insert.name, s.values, s.formats, nil)
	} else {
		p.SendQueryParams(s.table.insert.sql, s.values, s.table.paramOIDs, s.formats, nil)
	}
	if err := p.Sync(); err != nil {
		return 0, errors.Join(err, p.Close())
	}
	inserted := 0
	for {
		results, err := p.GetResults()
		if err != nil {
			return 0, errors.Join(err, p.Close())
		}
		switch r := results.(type) {
		case *pgconn.ResultReader:
			tag, err := r.Close()
			if err != nil {
				return 0, errors.Join(err, p.Close())
			}
			if tag.Insert() {
				inserted = int(tag.RowsAffected())
			}
		case *pgconn.PipelineSync:
			return inserted, p.Close()
		}
	}
}

// encode fills s.values with one array per column, or with one value for a
// column in which all messages have the same.
func (s *Sink) encode(batch []relay.Message) {
	for i := range s.arrays {
		c := &s.table.columns[i]
		s.arrays[i].reset(c.elem, c.constant > 0)
	}
	clear(s.inBatch)
	for i := range batch {
		m := &batch[i]
		if s.inBatch != nil {
			if _, again := s.inBatch[m.ID]; again {
				continue
			}
			s.inBatch[m.ID] = struct{}{}
		}
		for c := range s.arrays {
			a := &s.arrays[c]
			switch s.table.columns[c].field {
			case fieldID:
				a.appendString(m.ID)
			case fieldPayload:
				a.appendBytes(m.Row)
			case fieldEventType:
				a.append(m.Subject)
			case fieldSource:
				a.append(cmp.Or(m.Origin, s.source))
			case fieldAggregateID:
				a.append(m.Key)
			case fieldTraceID:
				a.append(traceID(m))
			case fieldReceivedAt: // now(), in the statement
			}
		}
	}
	for i := range s.arrays {
		elements, constant := s.arrays[i].finish()
		s.values[i] = elements
		if n := s.table.columns[i].constant; n > 0 {
			s.values[n-1] = constant
		}
	}
}

// traceID cuts the trace id out of a traceparent of the form
// 00-<32 hex digits>-<16 hex digits>-<2 hex digits>.
func traceID(m *relay.Message) string {
	parent, ok := m.Header(relay.HeaderTraceparent)
	if !ok || len(parent) < 55 || parent[2] != '-' || parent[35] != '-' || parent[52] != '-' {
		return ""
	}
	id := parent[3:35]
	zero := true
	for i := range len(id) {
		c := id[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return ""
		}
		zero = zero && c == '0'
	}
	if zero {
		return ""
	}
	return id
}

// Limits asks for batches that fit the buffers.
func (s *Sink) Limits() (messages, bytes int) { return 0, maxBatchBytes }

// TakeDuplicates returns how many messages were already in the table.
func (s *Sink) TakeDuplicates() int {
	n := s.duplicates
	s.duplicates = 0
	return n
}

// Ping asks the database for an answer.
func (s *Sink) Ping(ctx context.Context) error {
	if err := s.pool.Ping(ctx); err != nil {
		return classify(fmt.Errorf("reach the database of inbox %s: %w", s.table.name, err))
	}
	return nil
}

// Destination returns the table's name.
func (s *Sink) Destination(*relay.Message) (string, error) { return s.table.name, nil }

// Guarantee says what the table gives.
func (s *Sink) Guarantee() relay.Guarantee {
	g := relay.Guarantee{
		Delivery: "effectively once",
		Dedup:    "unique key on " + s.table.idColumn + ", for as long as a row is kept",
		Order:    "per key",
		Weakest:  "a row that is deleted and then delivered again is a new row",
	}
	switch {
	case s.table.unlogged:
		g.Weakest = "the table is unlogged: a crash of the server empties it"
	case s.table.asyncCommit:
		g.Weakest = "synchronous_commit is off: a crash of the server can lose what it had confirmed"
	case s.table.lookup:
		g.Dedup = "lookup of " + s.table.idColumn + " under an advisory lock, for as long as a row is kept"
	}
	return g
}

// Close gives the buffers back. The pool is the caller's.
func (s *Sink) Close() error {
	s.closed = true
	s.arrays, s.values, s.inBatch = nil, nil, nil
	return nil
}
