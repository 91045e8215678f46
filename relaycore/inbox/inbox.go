package inbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Config names the table to write to.
type Config struct {
	Schema  string // empty means pgtrickle
	Table   string // as in the catalog, or schema.table
	Source  string // value of the source column for messages without Origin
	Columns Columns
	Logger  *slog.Logger // nil logs nothing
}

// Columns names the columns to write. An empty name means the name in
// pgtrickle.pgt_inbox_config, or else the default; "-" means none.
type Columns struct {
	ID          string // event_id
	EventType   string // event_type
	Source      string // source
	AggregateID string // aggregate_id
	Payload     string // payload
	ReceivedAt  string // received_at
	TraceID     string // trace_id
}

// maxBatchBytes bounds the copies of a batch in the buffers of the sink and of pgx.
// Larger batches are not faster.
const maxBatchBytes = 4 << 20

// Sink writes to one inbox table. It is a [relay.Sink].
type Sink struct {
	pool       *pgxpool.Pool
	table      *table
	source     string
	log        *slog.Logger
	duplicates int
	conflicts  int
	fresh      int // batches in a row without a duplicate
	closed     bool

	// Of one Publish, reused by the next.
	types   *pgtype.Map
	columns []values // by column of the table
	params  [][]byte // encoded, in pgx's binary formats
	formats []int16
	inBatch map[string]struct{} // ids; only for a table that cannot find duplicates in a batch
}

// values are one column of a batch. A nil element is NULL.
type values struct {
	texts []*string
	rows  [][]byte // of the payload
	buf   []byte
}

// keepBuffer is the largest buffer that is kept for the next batch.
const keepBuffer = 2 << 20

var (
	_ relay.Sink       = (*Sink)(nil)
	_ relay.Limiter    = (*Sink)(nil)
	_ relay.Duplicates = (*Sink)(nil)
	_ relay.Conflicts  = (*Sink)(nil)
	_ relay.Pinger     = (*Sink)(nil)
	_ relay.Router     = (*Sink)(nil)
	_ relay.Guarantor  = (*Sink)(nil)
)

// Open checks the table, its columns, its unique key and the role's privileges. An
// error that only an operator can cure is fatal and names the cure. The pool stays
// the caller's.
func Open(ctx context.Context, pool *pgxpool.Pool, cfg Config) (*Sink, error) {
	t, err := inspect(ctx, pool, cfg)
	if err != nil {
		return nil, classify(err)
	}
	s := &Sink{pool: pool, table: t, source: cfg.Source, log: cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))}
	s.types = pgtype.NewMap()
	s.columns = make([]values, len(t.columns))
	s.params = make([][]byte, len(t.paramOIDs))
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
		return relay.ErrClosed
	}
	defer s.forget()
	if err := s.encode(batch); err != nil {
		return s.fail(err)
	}
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return s.fail(err)
	}
	defer conn.Release()
	inserted, err := s.insert(ctx, conn.Conn())
	if err != nil {
		s.fresh = 0
		if statementLost(err) {
			_ = conn.Conn().Close(ctx) // only a new connection makes pgx prepare the statement again
		}
		return s.fail(err)
	}
	s.fresh++
	if again := len(batch) - inserted; again != 0 {
		s.fresh = 0
		s.duplicates += again
		s.findConflicts(ctx, conn.Conn(), batch)
	}
	return nil
}

func (s *Sink) fail(err error) error {
	return classify(fmt.Errorf("insert into %s: %w", s.table.name, err))
}

// trusting is how many batches in a row must have been new before the sink expects
// the next one to be new too.
const trusting = 16

// insert sends the encoded batch and returns the number of new rows.
//
// ON CONFLICT costs the server a fifth more: it looks up each row first, and writes
// it in two steps. Duplicates come after a start or a failure, and seldom between.
// So a batch after many new ones is inserted without it. If that violates the unique
// key, nothing was inserted, and the batch is inserted again with ON CONFLICT.
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
		result = conn.PgConn().ExecPrepared(ctx, st.name, s.params, s.formats, nil)
	} else {
		result = conn.PgConn().ExecParams(ctx, st.sql, s.params, s.table.paramOIDs, s.formats, nil)
	}
	tag, err := result.Close()
	return int(tag.RowsAffected()), err
}

// prepare prepares st on conn and reports whether it did. A pool that is configured
// not to prepare runs behind a pooler that would mix up prepared statements.
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
		p.SendQueryPrepared(s.table.insert.name, s.params, s.formats, nil)
	} else {
		p.SendQueryParams(s.table.insert.sql, s.params, s.table.paramOIDs, s.formats, nil)
	}
	inserted := 0
	for err = p.Sync(); err == nil; {
		var results any
		results, err = p.GetResults()
		switch r := results.(type) {
		case *pgconn.ResultReader:
			var tag pgconn.CommandTag
			if tag, err = r.Close(); tag.Insert() {
				inserted = int(tag.RowsAffected())
			}
		case *pgconn.PipelineSync:
			return inserted, p.Close()
		}
	}
	return 0, errors.Join(err, p.Close())
}

// encode makes the parameters: an array per column, or one value for a column in
// which all messages have the same.
func (s *Sink) encode(batch []relay.Message) (err error) {
	s.collect(batch)
	for i := range s.columns {
		v, c := &s.columns[i], &s.table.columns[i]
		if c.constant > 0 {
			s.params[c.constant-1] = v.takeConstant()
		}
		array := any(v.texts)
		if c.field == fieldPayload {
			array = v.rows
		}
		if v.buf, err = s.types.Encode(c.array, pgx.BinaryFormatCode, array, v.buf[:0]); err != nil {
			return fmt.Errorf("encode column %s: %w", c.name, err)
		}
		s.params[i] = v.buf
		clear(v.texts[:cap(v.texts)]) // the batch is not retained
		clear(v.rows)
	}
	clear(s.inBatch)
	return nil
}

// forget gives up the buffers that a large message needed.
func (s *Sink) forget() {
	clear(s.params)
	for i := range s.columns {
		if v := &s.columns[i]; cap(v.buf) > keepBuffer {
			v.buf = nil
		}
	}
}

// collect gathers the columns of batch, without a second message of the same id if
// the table cannot find it.
func (s *Sink) collect(batch []relay.Message) {
	for i := range s.columns {
		s.columns[i].texts, s.columns[i].rows = s.columns[i].texts[:0], s.columns[i].rows[:0]
	}
	for i := range batch {
		m := &batch[i]
		if s.inBatch != nil {
			if _, again := s.inBatch[m.ID]; again {
				continue
			}
			s.inBatch[m.ID] = struct{}{}
		}
		for c := range s.columns {
			v := &s.columns[c]
			switch s.table.columns[c].field {
			case fieldID:
				v.texts = append(v.texts, &m.ID)
			case fieldPayload:
				if m.Payload.JSON != nil {
					v.rows = append(v.rows, m.Payload.JSON)
				} else {
					v.rows = append(v.rows, m.Row)
				}
			case fieldEventType:
				v.add(&m.Subject)
			case fieldSource:
				v.add(cmp.Or(orNil(&m.Origin), &s.source))
			case fieldAggregateID:
				v.add(&m.Key)
			case fieldTraceID:
				id := traceID(m)
				v.add(&id)
			case fieldReceivedAt: // filled by the statement
			}
		}
	}
}

// add appends text, or NULL if it is empty.
func (v *values) add(text *string) { v.texts = append(v.texts, orNil(text)) }

func orNil(text *string) *string {
	if *text == "" {
		return nil
	}
	return text
}

// takeConstant returns the text that all elements have, nil for NULL, and removes
// the elements. It returns nil and removes nothing if they differ.
func (v *values) takeConstant() []byte {
	first := v.texts[0]
	for _, text := range v.texts[1:] {
		if (text == nil) != (first == nil) || text != nil && *text != *first {
			return nil
		}
	}
	v.texts = v.texts[:0]
	if first == nil {
		return nil
	}
	return []byte(*first)
}

// traceID returns the trace id of a traceparent of the form
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

// Limits implements [relay.Limiter], with batches that fit the buffers.
func (s *Sink) Limits() (messages, bytes int) { return 0, maxBatchBytes }

// TakeDuplicates implements [relay.Duplicates].
func (s *Sink) TakeDuplicates() int {
	n := s.duplicates
	s.duplicates = 0
	return n
}

// Ping implements [relay.Pinger].
func (s *Sink) Ping(ctx context.Context) error {
	if err := s.pool.Ping(ctx); err != nil {
		return classify(fmt.Errorf("reach the database of inbox %s: %w", s.table.name, err))
	}
	return nil
}

// Destination implements [relay.Router] with the table's name.
func (s *Sink) Destination(*relay.Message) (string, error) { return s.table.name, nil }

// Guarantee implements [relay.Guarantor]. It depends on the table.
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

// Close releases the buffers. The pool stays the caller's.
func (s *Sink) Close() error {
	s.closed = true
	s.columns, s.params, s.inBatch = nil, nil, nil
	return nil
}
