package progress

import (
	"context"
	"fmt"
	"slices"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

// audit counts settled rows by ranges of ids, so that they can be compared with the rows
// of the table. It finds rows that a cursor cannot miss: they appeared behind the
// position, because a condition of the strategy was broken.
type audit struct {
	on      bool
	from    int64 // rows up to it are not counted
	highest int64 // settled row
	buckets []bucket
	cached  int // index of the bucket last used
}

type bucket struct{ number, rows int64 }

const (
	bucketIDs  = 1 << 16 // ids of a bucket
	maxBuckets = 128
)

func (a *audit) count(id int64) {
	if !a.on || id <= a.from {
		return
	}
	a.highest = max(a.highest, id)
	number := id / bucketIDs
	if a.cached < len(a.buckets) && a.buckets[a.cached].number == number {
		a.buckets[a.cached].rows++
		return
	}
	i, found := slices.BinarySearchFunc(a.buckets, number, func(b bucket, n int64) int { return int(b.number - n) })
	if !found {
		a.buckets = slices.Insert(a.buckets, i, bucket{number: number})
		if len(a.buckets) > maxBuckets {
			// It was not compared for long. Rows without a count are not audited.
			a.from = max(a.from, (a.buckets[0].number+1)*bucketIDs-1)
			a.buckets = slices.Delete(a.buckets, 0, 1)
			if i--; i < 0 {
				return
			}
		}
	}
	a.buckets[i].rows++
	a.cached = i
}

// parseAudit is the inverse of list.
func parseAudit(list []int64) (a audit) {
	if len(list) < 2 {
		return a
	}
	a.from, a.highest = list[0], list[1]
	for i := 2; i+1 < len(list); i += 2 {
		a.buckets = append(a.buckets, bucket{list[i], list[i+1]})
	}
	return a
}

// list returns the counts as a checkpoint has them: from, highest, and the number and
// the rows of each bucket.
func (a *audit) list() []int64 {
	if !a.on {
		return nil
	}
	list := make([]int64, 0, 2+2*len(a.buckets))
	list = append(list, a.from, a.highest)
	for _, b := range a.buckets {
		list = append(list, b.number, b.rows)
	}
	return list
}

// compare returns the number of rows up to id safe that the table has and that are not
// counted. complete are the buckets that need not be compared again. Rows returns the
// number of rows of the table with ids above lo, up to hi.
func (a *audit) compare(safe int64, rows func(lo, hi int64) (int64, error)) (missing int64, complete []int64, err error) {
	for _, k := range a.buckets {
		lo, hi := max(k.number*bucketIDs-1, a.from), (k.number+1)*bucketIDs-1
		whole := hi <= safe
		if !whole && (a.highest > safe || lo >= safe) {
			continue // the count has rows above safe
		}
		n, err := rows(lo, min(hi, safe))
		if err != nil {
			return 0, nil, err
		}
		if n > k.rows {
			missing += n - k.rows
		} else if whole {
			complete = append(complete, k.number)
		}
	}
	return missing, complete, nil
}

// close drops buckets that were found complete.
func (a *audit) close(numbers []int64) {
	for _, n := range numbers {
		if len(a.buckets) > 0 && a.buckets[0].number == n {
			a.from = max(a.from, (n+1)*bucketIDs-1)
			a.buckets = slices.Delete(a.buckets, 0, 1)
		}
	}
	a.cached = 0
}

// Unaccounted returns the number of rows of tab that were committed before the
// position and have not been settled. It must be zero: every other number is a loss. A
// range that was found complete is not counted again.
func (t *Tracker) Unaccounted(ctx context.Context, q pg.Querier, tab *table.Table) (int64, error) {
	t.mu.Lock()
	a, safe := t.audit, t.safe
	a.buckets = slices.Clone(a.buckets)
	t.mu.Unlock()

	missing, complete, err := a.compare(safe, counter(ctx, q, tab))
	if err != nil {
		return 0, err
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	t.audit.close(complete)
	return missing, nil
}

// Unaccounted is [Tracker.Unaccounted] for a stored checkpoint.
func (c *Checkpoint) Unaccounted(ctx context.Context, q pg.Querier, tab *table.Table) (int64, error) {
	a := parseAudit(c.Audit)
	missing, _, err := a.compare(c.Safe, counter(ctx, q, tab))
	return missing, err
}

func counter(ctx context.Context, q pg.Querier, tab *table.Table) func(lo, hi int64) (int64, error) {
	sql := `SELECT count(*) FROM ` + tab.Qualified() + ` WHERE ` + tab.ID() + ` > $1 AND ` + tab.ID() + ` <= $2`
	return func(lo, hi int64) (n int64, err error) {
		if err := q.QueryRow(ctx, sql, lo, hi).Scan(&n); err != nil {
			return 0, fmt.Errorf("count rows of %s: %w", tab.Qualified(), err)
		}
		return n, nil
	}
}
