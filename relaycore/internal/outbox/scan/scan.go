// Package scan decides which rows of an outbox come next. No committed row is passed
// over, and rows of a key come in the order in which they were committed.
//
// There are two strategies. [Window] reads by snapshots: a window holds the rows that
// one snapshot sees and an earlier one does not. It needs an indexed column of type
// xid8 that defaults to pg_current_xact_id(). [Fence] reads in the order of ids, and
// keeps every gap open until no transaction can fill it. docs/outbox-reading.md proves
// both; docs/model has a model that a test explores exhaustively.
//
// A [Position] is a point in a scan. Each strategy has a type of its own for it. That
// type knows how a position is stored and compared, and which rows are before it
// and after it. Nothing else switches on the name of a strategy.
//
// A [Scanner] reads through the interface [DB], so that tests can replace the server. It
// waits and measures time with package time only, so that tests can run in a bubble of
// testing/synctest. SQL stands in the files of directory sql; {names} are replaced.
package scan

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"unique"

	"github.com/jackc/pgerrcode"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// MaxRows bounds the rows of one read.
const MaxRows = 4096

// manyRows is the number of rows from which a read is worth repeating at once. A
// shorter read has caught up: the next one would mostly be empty, and delay the next
// row.
const manyRows = 64

// Strategy is a way to read an outbox.
type Strategy interface {
	// Name is the strategy's name in settings and checkpoints.
	Name() string
	// Check returns a fatal error if t does not have what the strategy relies on.
	Check(ctx context.Context, q pg.Querier, t *table.Table, set table.Settings, log *slog.Logger) error
	// Behind returns the position after an id up to which all rows are settled.
	Behind(id int64) Position
	// Now returns a position after every row that is committed. No row that is left
	// out by it has an id above highest.
	Now(ctx context.Context, q pg.Querier, t *table.Table) (p Position, highest int64, err error)
}

// The strategies.
var (
	Window Strategy = windowStrategy{}
	Fence  Strategy = fenceStrategy{}
)

// Choose returns the strategy that the settings ask for. For auto that is [Window]
// where t has an indexed column for it, and [Fence] elsewhere.
func Choose(t *table.Table, set table.Settings, log *slog.Logger) Strategy {
	switch {
	case set.Strategy == Window.Name():
		return Window
	case set.Strategy == Fence.Name():
		return Fence
	case t.Columns.Xid != "" && t.XidIndexed:
		return Window
	case t.Columns.Xid != "":
		log.Warn("transaction id column has no index", "table", t.Qualified(), "strategy", Fence.Name(),
			"cure", "CREATE INDEX CONCURRENTLY ON "+t.Qualified()+" ("+t.Xid()+")")
	}
	return Fence
}

// Position is a point in a scan: the rows before it are settled, the others are
// not. A Position never changes, so goroutines can share it.
type Position interface {
	// Strategy returns the strategy that reads from the position.
	Strategy() Strategy
	// Scan returns a scanner that starts here. No row appears up to the id safe.
	Scan(t *table.Table, l *rows.Layout, safe int64) Scanner

	// Within returns the position inside the read that starts here, behind its rows
	// up to id.
	Within(id int64) Position
	// Complete returns the id up to which no row can appear once everything in front
	// of the position is settled. It is [table.Beginning] if that is unknown.
	Complete() int64
	// Covered returns the highest id that a read has passed, [table.Beginning] if the
	// position does not record it.
	Covered() int64
	// Clean returns the id after which another strategy can go on without repeating
	// a row. ok is false if there is none: a read is open, or a gap.
	Clean() (id int64, ok bool)

	// Check returns a [*BackwardsError] if the server has not had the transactions that
	// the position has seen. The moment must be later than the position.
	Check(now Moment) error
	// Pending returns the SQL condition that a row of t is after the position.
	Pending(t *table.Table) (string, error)
	// Lag returns a query of the number, the age in seconds and the highest id of the
	// first maxRows rows after the position.
	Lag(t *table.Table, maxRows int) (sql string, args []any)

	store(*State)
}

// State is the stored form of a position, as members of a checkpoint.
type State struct {
	*WindowState
	*FenceState
}

// Store returns the stored form of p.
func Store(p Position) State {
	var s State
	p.store(&s)
	return s
}

// Position returns the position that a strategy stored.
func (s State) Position(strategy string) (Position, error) {
	var p Position
	var err error
	switch strategy {
	case Window.Name():
		p, err = s.WindowState.position()
	case Fence.Name():
		p, err = s.FenceState.position()
	default:
		err = fmt.Errorf("unknown strategy %q", strategy)
	}
	if err != nil {
		return nil, relay.Fatal(fmt.Errorf("checkpoint: %w", err))
	}
	return p, nil
}

// Scanner reads the rows after its position.
type Scanner interface {
	// Read reads at most want rows, and passes them to take in the order of delivery
	// until take declines. Rows behind that one do not count as read.
	Read(ctx context.Context, db DB, want int, take Take) (Read, error)
	Position() Position
}

// Windowed is a [Scanner] of windows.
type Windowed interface {
	Scanner
	// AtRest reports whether no window is open.
	AtRest() bool
	// EndAt opens the window that ends with a snapshot, at rest only. The snapshot must
	// be later than the one of the window before.
	EndAt(snapshot string) error
}

// Take receives one row, the columns of the layout. It returns false to end the read.
type Take func(v [][]byte, id int64) (more bool, err error)

// Read is the result of one read of a scanner.
type Read struct {
	Inside Position // starts the read; see [Position.Within]
	From   int64    // rows of the read up to this id were settled before
	After  Position
	Moved  bool  // the position is another one even if there were no rows
	Secure int64 // no row appears up to it once this read is settled; Beginning = unknown
	More   bool  // there may be more rows at once
	Again  bool  // the rows must be discarded, and the read repeated
}

// DB runs one statement in a transaction of its own, and passes its rows to each until
// it declines.
type DB interface {
	Query(ctx context.Context, sql string, formats []int16, args []string, each func(v [][]byte) (bool, error)) error
}

// queryID runs a statement that returns one integer.
func queryID(ctx context.Context, db DB, sql string, args ...string) (id int64, err error) {
	err = db.Query(ctx, sql, nil, args, func(v [][]byte) (bool, error) {
		id, err = rows.ParseID(v[0])
		return true, err
	})
	return id, err
}

// checkSequence refuses sequences whose ids do not ascend in the order in which they
// are taken. With cached, one session may take several at once.
func checkSequence(t *table.Table, order string, cached bool) error {
	q := &t.Sequence
	switch {
	case q.OID == 0:
		return nil
	case q.Cache != 1 && !cached:
		return relay.Fatal(fmt.Errorf("sequence %s hands out %d ids to a session at once (CACHE), "+
			"so ids are not in the order %s: ALTER SEQUENCE %s CACHE 1",
			q.Name, q.Cache, order, q.Name))
	case q.Increment < 1:
		return relay.Fatal(fmt.Errorf("sequence %s counts by %d: ALTER SEQUENCE %s INCREMENT BY 1", q.Name, q.Increment, q.Name))
	case q.Cycle:
		return relay.Fatal(fmt.Errorf("sequence %s restarts at its end: ALTER SEQUENCE %s NO CYCLE", q.Name, q.Name))
	}
	return nil
}

// addXid is the call that makes an outbox readable by windows.
func addXid(t *table.Table) string {
	return "SELECT pgtrickle.outbox_add_xid(" + pg.Literal(t.Qualified()) + ")"
}

// fill replaces the names in a template by what they mean for t. More are pairs. {same}
// fails for another table of that name, created since, because its rows would get ids of
// the old one's; see [IsReplaced]. The planner folds it, so it costs nothing.
func fill(template string, t *table.Table, more ...string) string {
	created := "NULL::timestamptz"
	if t.Columns.Created != "" {
		created = pg.Identifier(t.Columns.Created) + "::timestamptz"
	}
	same := fmt.Sprintf("1 / (%s::regclass = %d::oid)::int = 1", pg.Literal(t.Qualified()), t.OID)
	pairs := append([]string{
		"{table}", t.Qualified(), "{id}", t.ID(), "{xid}", t.Xid(), "{created}", created, "{same}", same,
	}, more...)
	return unique.Make(strings.NewReplacer(pairs...).Replace(template)).Value() // many pipelines read one outbox
}

// IsReplaced reports whether err shows that another table has the table's name now.
func IsReplaced(err error) bool { return pg.Is(err, pgerrcode.DivisionByZero) }

const maxID = math.MaxInt64

// BackwardsError reports that the server has not had transactions that a position has
// seen: it was restored, or a standby that lagged was promoted.
type BackwardsError struct{ From, To string }

func (e *BackwardsError) Error() string {
	return fmt.Sprintf("the database's snapshot %s lies before the checkpoint's %s: "+
		"it was restored, or a standby that lagged was promoted", e.To, e.From)
}

// IsBackwards reports whether err is a [*BackwardsError].
func IsBackwards(err error) bool {
	_, ok := errors.AsType[*BackwardsError](err)
	return ok
}
