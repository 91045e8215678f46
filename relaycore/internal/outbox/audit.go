package outbox

import (
	"context"
	"fmt"
	"slices"
	"strconv"
)

// audit counts the rows that were settled, by ranges of ids, so that they can be
// held against the rows that the table has. It finds what no cursor can know to
// be missing: rows that came to lie behind the position without being read,
// because a condition of the strategy was broken.
type audit struct {
	on      bool
	from    int64 // rows up to it are not counted
	highest int64 // row settled
	buckets []bucket
	cached  int // index of the bucket last used
}

type bucket struct{ number, rows int64 }

// A bucket is so many ids wide, and so many are kept.
const (
	bucketIDs  = 1 << 16
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
			// Nobody has looked for a long time. What is not counted is not audited.
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

// parse restores what appendJSON wrote.
func (a *audit) parse(list []int64) {
	if len(list) < 2 {
		return
	}
	a.on, a.from, a.highest = true, list[0], list[1]
	for i := 2; i+1 < len(list); i += 2 {
		a.buckets = append(a.buckets, bucket{list[i], list[i+1]})
	}
}

func (a *audit) appendJSON(b []byte) []byte {
	if !a.on {
		return b
	}
	b = append(b, `,"audit":[`...)
	b = strconv.AppendInt(b, a.from, 10)
	b = append(b, ',')
	b = strconv.AppendInt(b, a.highest, 10)
	for _, k := range a.buckets {
		b = append(b, ',')
		b = strconv.AppendInt(b, k.number, 10)
		b = append(b, ',')
		b = strconv.AppendInt(b, k.rows, 10)
	}
	return append(b, ']')
}

// compare returns the rows that the table has and nobody has settled, among the
// ids up to safe, and the buckets that need not be looked at again.
func (a *audit) compare(ctx context.Context, q querier, t *table, safe int64) (missing int64, closed []int64, err error) {
	for _, k := range a.buckets {
		lo, hi := max(k.number*bucketIDs-1, a.from), (k.number+1)*bucketIDs-1
		whole := hi <= safe
		if !whole && (a.highest > safe || lo >= safe) {
			continue // rows that may still be on their way are among those counted
		}
		var rows int64
		err := q.QueryRow(ctx, `SELECT count(*) FROM `+t.qualified()+` WHERE `+quote(t.id)+` > $1 AND `+quote(t.id)+` <= $2`, lo, min(hi, safe)).Scan(&rows)
		if err != nil {
			return 0, nil, fmt.Errorf("count rows of %s: %w", t.qualified(), err)
		}
		if rows > k.rows {
			missing += rows - k.rows
		} else if whole {
			closed = append(closed, k.number)
		}
	}
	return missing, closed, nil
}

// close forgets buckets that were found complete.
func (a *audit) close(numbers []int64) {
	for _, n := range numbers {
		if len(a.buckets) > 0 && a.buckets[0].number == n {
			a.from = max(a.from, (n+1)*bucketIDs-1)
			a.buckets = slices.Delete(a.buckets, 0, 1)
		}
	}
	a.cached = 0
}

// Unaccounted returns the rows that were committed, lie behind the checkpoint and
// have not been settled. It must be zero: anything else is a loss. What has been
// found complete once is not counted again, so that a call costs little.
func (s *Source) Unaccounted(ctx context.Context) (int64, error) {
	st := s.settler.Load()
	st.mu.Lock()
	a := st.counts
	a.buckets = slices.Clone(a.buckets)
	safe := st.safe
	st.mu.Unlock()
	missing, closed, err := a.compare(ctx, s.pool, s.shape.Load(), safe)
	if err != nil {
		return 0, err
	}
	st.mu.Lock()
	st.counts.close(closed)
	st.mu.Unlock()
	return missing, nil
}
