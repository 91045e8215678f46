package outbox

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/progress"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/snapshot"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
)

// shared is what the goroutine of Receive shares with all others.
type shared struct {
	current  atomic.Pointer[view]
	position atomic.Pointer[place]
	claimed  atomic.Int64 // the highest claim check received
	compared atomic.Int64 // the highest row whose snapshot was compared
}

// view is the outbox as it is open now.
type view struct {
	table   *table.Table
	tracker *progress.Tracker
	state   *snapshot.State // nil = snapshots are not compared
	ids     rows.IDs
	refused error // why a requested snapshot is not read
}

// place is how far the reads of a table are.
type place struct {
	table    *table.Table
	position scan.Position
}

func (s *shared) set(v view, p scan.Position) {
	s.claimed.Store(0)
	s.compared.Store(table.Beginning)
	if v.state != nil {
		s.compared.Store(v.state.Compared())
	}
	s.current.Store(&v)
	s.setPosition(v.table, p)
}

// identify records the identity that the outbox has got under the reader.
func (s *shared) identify(ids rows.IDs) {
	v := *s.view()
	v.ids = ids
	s.current.Store(&v)
}

func (s *shared) setPosition(t *table.Table, p scan.Position) { s.position.Store(&place{t, p}) }

func (s *shared) view() *view { return s.current.Load() }

// maxCounted is the number of rows up to which a lag is counted exactly.
const maxCounted = 10000

// Lag implements [relay.Lagger]. Above 10,000 rows it counts ids.
func (s *Source) Lag(ctx context.Context) (rows int64, seconds float64, err error) {
	p := s.shared.position.Load()
	t := p.table
	sql, args := p.position.Lag(t, maxCounted+1)
	var behind *int64
	if err := s.pool.QueryRow(ctx, sql, args...).Scan(&rows, &seconds, &behind); err != nil {
		return 0, 0, fmt.Errorf("measure lag of %s: %w", t.Qualified(), err)
	}
	if rows > maxCounted && behind != nil {
		highest, err := table.HighestID(ctx, s.pool, t)
		if err != nil {
			return 0, 0, err
		}
		rows += max(highest-*behind, 0)
	}
	return rows, max(seconds, 0), nil
}

// Numbering returns the sequence of the outbox's ids, and the id up to which everything
// is settled. While that is the sequence's last value, there is nothing to read and
// nothing being delivered. So the supervisor can watch many sequences at once, and spare
// their sources the polls. The two become equal a few reads after the last transaction
// that took an id has ended. ok is false without a sequence, if the sequence cannot be
// read, and if sessions cache its ids.
func (s *Source) Numbering() (sequence uint32, settled int64, ok bool) {
	v := s.shared.view()
	existing := v.tracker.Backfill() != nil // the captured table has rows to read
	if q := &v.table.Sequence; !existing && q.Exact() && q.Increment == 1 {
		return q.OID, v.tracker.SettledUpTo(), true
	}
	return 0, 0, false
}

// Unaccounted returns the number of rows that were committed after the checkpoint and
// have not been settled. It must be zero: every other number is a loss.
func (s *Source) Unaccounted(ctx context.Context) (int64, error) {
	v := s.shared.view()
	return v.tracker.Unaccounted(ctx, s.pool, v.table)
}

// Existing returns how many rows of the captured table are settled, about how many it
// has, and about how long the rest takes. ok is false if none are read. 0 is unknown.
func (s *Source) Existing() (rows, total int64, left time.Duration, ok bool) {
	state := s.shared.view().tracker.Backfill()
	if state == nil {
		return 0, 0, 0, false
	}
	return state.Rows, state.Total, state.Left(time.Now()), true
}

// Overtaken returns the number of ids that were gone before they could be delivered,
// deleted by retention or rolled back, over the checkpoint's life.
func (s *Source) Overtaken() int64 { return s.shared.view().tracker.Overtaken() }

// Expects implements engine.Expecter. An id ends in its row and its index, unless the
// application gave it, or the row is one of the captured table. Of the latter two the source
// does not know whether they were settled, or are deleted by now. Expects may return true
// for a message that is settled, if one before it is not.
func (s *Source) Expects(id string) (expected, known bool) {
	v := s.shared.view()
	if row, index, ok := rows.ParseMessageID(id, v.table.Name, v.ids.Outbox); ok {
		return v.tracker.Unsettled(row, index), true
	}
	if run, ok := rows.ParseExistingID(id, v.table.Name, v.ids.Outbox); ok {
		reads := v.tracker.Reads(run)
		return reads, !reads
	}
	given := v.table.Columns.EventID != ""
	return given, !given
}

// SetPollInterval bounds the wait of an idle source between polls. It must not be called
// after the first Receive.
func (s *Source) SetPollInterval(d time.Duration) { s.cfg.PollInterval = d }
