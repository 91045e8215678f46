// Package backfill reads the rows that a captured table had before its outbox was read,
// for startup snapshot. It reads in chunks, between the windows of the outbox.
//
// # Why no row is missing and none is older than the one before
//
// A change of the table and its outbox row are written by one transaction, so a snapshot
// sees both or neither. One statement returns a chunk and its own snapshot S: the next
// rows after a key, as S sees them. The reader then goes on in this order:
//
//  1. It reads the window that ends with S: the changes that S sees and that were not
//     read yet.
//  2. It returns the rows of the chunk.
//  3. It reads on after S: the changes that S does not see.
//
// So the row contains each change of its key that comes before it, and none that comes
// after it. The outbox is read from a snapshot S0 on that was taken before the first chunk.
// A row that S0 sees is in a chunk, unless a later transaction removed it or changed its key,
// and that change comes by itself. A row that S0 does not see was written by a change that
// comes.
//
// The races, step by step:
//
//   - A row changes after its chunk was read and before it is delivered. S does not see
//     the change. It comes by step 3, after the row.
//   - A row changes before its chunk is read, and its transaction commits after. As above:
//     S does not see the transaction, and the chunk has the row before the change.
//   - A row's key changes, from after the position to before it. The chunks pass it
//     over, and the change brings it whole. The other way the row comes twice, and the
//     second time as the change left it.
//   - A row is deleted before the position. Receivers get a delete for a row that
//     they never had.
//   - The relay ends before a chunk is confirmed. Its checkpoint has the position in the
//     outbox, and the key before the chunk. The next owner reads a chunk from there,
//     with a snapshot S' of its own, after the changes up to S'. A row that was delivered
//     the first time has the same event id. A far end may drop the second one: all that
//     happened to the row in between was delivered before it.
//   - The table is rewritten or truncated while the statement waits for its lock. S was
//     taken before, and the new file looks empty under S. The function that reads the rows
//     finds that the file is not that of S, and fails with serialization_failure. The
//     chunk is read again with a later snapshot.
//
// # What it costs others
//
// No transaction is open longer than the statement that reads a chunk. Between two chunks
// a window of the outbox is read. A chunk has no more rows than were settled in a
// quarter of a second, and half a second's rows at most are in flight. So changes wait for
// about that long, however slow the far end is; see [Pace].
package backfill

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

//go:embed chunk.sql
var chunkSQL string

//go:embed keyed.sql
var keyedSQL string

// perBlock is the number of keys that a row of relay_snapshot_keys can have.
const perBlock = 1000

// State is how far a backfill is, as checkpoints have it.
type State struct {
	Run   string    `json:"run"`             // part of the event ids of its rows
	After string    `json:"after,omitempty"` // key of the last row, as text of an array, or its number; "" = none
	Rows  int64     `json:"rows"`            // up to that one
	Total int64     `json:"total,omitempty"` // rows of the table, as the server estimated them at the start, or number of keys
	Began time.Time `json:"began"`

	Request int64 `json:"request,omitempty"` // that it serves; 0 = startup
	Keyed   bool  `json:"keyed,omitempty"`   // the request has the keys of its rows
}

// Begin returns the state of a backfill that has read no row.
func Begin(now time.Time) *State {
	return &State{Run: strings.ToLower(rand.Text()[:12]), Began: now.UTC().Truncate(time.Second)}
}

// again returns the state of a backfill for the same request that has read no row.
func (s *State) again(now time.Time) *State {
	again := Begin(now)
	again.Request, again.Keyed, again.Total = s.Request, s.Keyed, s.Total
	return again
}

// Left returns about how long the rest takes at the present speed, 0 if that is unknown.
func (s *State) Left(now time.Time) time.Duration {
	if s.Rows == 0 || s.Total <= s.Rows {
		return 0
	}
	each := now.Sub(s.Began).Seconds() / float64(s.Rows)
	return time.Duration(each * float64(s.Total-s.Rows) * float64(time.Second))
}

// Describe describes a stored state to an operator.
func Describe(state json.RawMessage) string {
	var s State
	if err := json.Unmarshal(state, &s); err != nil {
		return "snapshot: unknown"
	}
	text := fmt.Sprintf("snapshot: %d rows", s.Rows)
	if s.Total > 0 {
		text += fmt.Sprintf(" of about %d", s.Total)
	}
	if left := s.Left(time.Now()); left > 0 {
		text += fmt.Sprintf(", about %v left", left.Round(time.Second))
	}
	return text
}

// Table is a captured table whose rows can be read.
type Table struct {
	Rows    int64 // estimate; 0 = unknown
	sql     string
	formats []int16
}

// find returns the captured table of an outbox, to be read by key or as a whole. The error
// is fatal, and has the cure, if its rows cannot be read.
func find(ctx context.Context, q pg.Querier, t *table.Table, keyed bool) (*Table, error) {
	var fn, problem, cure *string
	var estimate *int64
	err := q.QueryRow(ctx, `SELECT fn, estimate, problem, cure FROM pgtrickle._relay_rows_function($1)`, t.Name).
		Scan(&fn, &estimate, &problem, &cure)
	switch {
	case pg.IsMissing(err) || errors.Is(err, pgx.ErrNoRows):
		return nil, relay.Fatal(errors.New("snapshot: the database has no function that reads rows; run the migrate command"))
	case err != nil:
		return nil, fmt.Errorf("snapshot: find the rows of outbox %s: %w", t.Qualified(), err)
	case problem != nil:
		return nil, relay.Fatal(fmt.Errorf("snapshot: %s; %s", *problem, *cure))
	}
	b := &Table{formats: []int16{0, 0, 0, 1, 0, 0}, sql: chunkSQL}
	if estimate != nil {
		b.Rows = *estimate
	}
	if keyed {
		b.sql = keyedSQL
	}
	row := "r.row"
	if t.NoEncoding { // a text that is not UTF-8 would make the server refuse the chunk
		row = "convert_to(r.row, 'SQL_ASCII')"
	}
	b.sql = strings.NewReplacer("{rows}", *fn, "{row}", row).Replace(b.sql)
	return b, nil
}

// Limits bound a chunk. It has at least one row, if there is one.
type Limits struct {
	Rows  int
	Bytes int   // of rows
	Large int64 // bytes of a row from which it is left on the server
}

// Chunk is the result of one read. It may have no rows although more follow.
type Chunk struct {
	Snapshot string // that the rows were read by
	Rows     int
	After    string // where the next chunk begins; see [State]
	End      bool   // no more rows follow
	Large    int64  // bytes of the only row, if it was left on the server
}

// args returns the arguments of the statement that reads the chunk after s, and where the
// next chunk begins if this one has no rows.
func (s *State) args(l Limits) (args []string, next string) {
	limits := []string{strconv.Itoa(l.Rows), strconv.Itoa(l.Bytes), strconv.FormatInt(l.Large, 10)}
	if !s.Keyed {
		return append([]string{s.After}, limits...), s.After
	}
	at, _ := strconv.ParseInt(s.After, 10, 64) // it is empty before the first
	block := at / perBlock
	from := []string{strconv.FormatInt(s.Request, 10), strconv.FormatInt(block, 10), strconv.FormatInt(at%perBlock, 10)}
	return append(from, limits...), strconv.FormatInt((block+1)*perBlock, 10)
}

// Read reads the next chunk after s, and passes its rows to add. The row of a chunk with
// Large set is nil. again is true if the table has changed in a way that leaves no chunk;
// the rows that add got are void then.
func (b *Table) Read(ctx context.Context, db scan.DB, s *State, l Limits, add func(key, row []byte)) (c Chunk, again bool, err error) {
	args, next := s.args(l)
	c.After = next
	err = db.Query(ctx, b.sql, b.formats, args, func(v [][]byte) (bool, error) {
		if c.Snapshot == "" {
			c.Snapshot = string(v[0])
		}
		c.End = string(v[5]) == "t"
		if v[1] == nil {
			return false, nil
		}
		if v[3] == nil {
			if c.Large, err = rows.ParseID(v[2]); err != nil {
				return false, err
			}
		}
		c.Rows++
		if c.After = string(v[1]); s.Keyed {
			c.After = string(v[4])
		}
		add(v[1], v[3])
		return true, nil
	})
	if pg.Is(err, pgerrcode.SerializationFailure) {
		return Chunk{}, true, nil
	}
	if err == nil && c.Snapshot == "" {
		err = errors.New("a chunk came without its snapshot")
	}
	if err != nil {
		return Chunk{}, false, fmt.Errorf("read rows of the captured table: %w", err)
	}
	return c, false, nil
}
