package scan

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
)

// server answers the statements of a scanner like a PostgreSQL of few rows. It has
// neither a connection nor a clock, so that a scanner can be tested in a bubble.
type server struct {
	rows     []int64  // visible
	last     int64    // value of the sequence
	size     int      // of the next window
	holders  []string // transactions that hold the table's lock
	listings int
	retries  int
}

func (s *server) Query(_ context.Context, sql string, _ []int16, args []string, each func(v [][]byte) (bool, error)) error {
	answer := func(v ...string) error {
		row := make([][]byte, len(v))
		for i := range v {
			if v[i] != "" {
				row[i] = []byte(v[i])
			}
		}
		_, err := each(row)
		return err
	}
	switch {
	case strings.Contains(sql, "pg_locks"):
		s.listings++
		for _, vxid := range s.holders {
			if err := answer(vxid, "f", ""); err != nil {
				return err
			}
		}
	case strings.Contains(sql, "unnest($1::bigint[]"): // a read of the fence
		los, his := numbers(args[0]), numbers(args[1])
		for i := range los {
			for _, id := range s.rows {
				if los[i] <= id && id <= his[i] {
					if err := answer(strconv.FormatInt(id, 10), "{}"); err != nil {
						return err
					}
				}
			}
		}
	case strings.Contains(sql, "pg_current_snapshot()"): // a window without rows
		s.retries++
		return answer("", "", fmt.Sprintf("10:10: %d %d", s.size, s.last))
	case strings.Contains(sql, "count(*)"):
		return answer(strconv.Itoa(s.size))
	case strings.Contains(sql, "last_value"):
		return answer(strconv.FormatInt(s.last, 10))
	}
	return nil
}

func numbers(array string) []int64 {
	var list []int64
	for f := range strings.SplitSeq(strings.Trim(array, "{}"), ",") {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			panic(err)
		}
		list = append(list, n)
	}
	return list
}

func testTable() (*table.Table, *rows.Layout) {
	t := &table.Table{Schema: "public", Name: "events", OID: 1, Plain: true, Columns: table.Columns{ID: "id", Payload: "payload", Xid: "xid"}}
	t.Sequence = table.Sequence{OID: 2, Name: "events_id_seq", Increment: 1, Cache: 1, Start: 1, Readable: true}
	return t, rows.NewLayout(t)
}

// read reads once, and returns the ids.
func read(t *testing.T, sc Scanner, db DB) (Read, []int64) {
	t.Helper()
	var ids []int64
	r, err := sc.Read(t.Context(), db, 100, func(_ [][]byte, id int64) (bool, error) {
		ids = append(ids, id)
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return r, ids
}

// An id that an open transaction has taken is not secure. The locks are listed twenty
// times a second meanwhile, however often the windows are read.
func TestHorizonWaitsForHolders(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab, l := testTable()
		sc := Window.Behind(0).Scan(tab, l, 0)
		s := &server{last: 3, holders: []string{"3/4"}}
		for begun := time.Now(); time.Since(begun) < time.Second; time.Sleep(time.Millisecond) {
			if r, _ := read(t, sc, s); r.Secure != table.Beginning {
				t.Fatalf("secure up to %d while a transaction has an id", r.Secure)
			}
		}
		if s.listings < 18 || s.listings > 21 {
			t.Errorf("%d listings in a second, want 20", s.listings)
		}
		s.holders = nil
		time.Sleep(listIdle)
		if r, _ := read(t, sc, s); r.Secure != 3 {
			t.Errorf("secure up to %d after the transaction ended, want 3", r.Secure)
		}
	})
}

// A window that is too large to sort is opened again a few times, so that it can report
// how far it is.
func TestBigWindowIsOpenedWhenNothingIsHeld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab, l := testTable()
		sc := Window.Behind(0).Scan(tab, l, 0)
		s := &server{last: 9000, size: smallWindow + 1, holders: []string{"3/4"}}
		begun := time.Now()
		read(t, sc, s)
		if took := time.Since(begun); s.retries != maxRetries+1 || took != maxRetries*retryPause {
			t.Errorf("opened %d times within %s, want %d and %s", s.retries, took, maxRetries+1, maxRetries*retryPause)
		}
	})
}

// The fence keeps a gap open until its transaction has ended, and reads it once more
// after that.
func TestFenceReadsAHoleOnceMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab, l := testTable()
		sc := Fence.Behind(0).Scan(tab, l, 0)
		s := &server{rows: []int64{1, 3}, last: 3, holders: []string{"3/4"}}
		for range 5 {
			r, _ := read(t, sc, s)
			if got := r.After.Complete(); got != 1 {
				t.Fatalf("complete up to %d while a transaction has id 2", got)
			}
			time.Sleep(time.Millisecond)
		}
		s.rows, s.holders = []int64{1, 2, 3}, nil // it commits
		r, ids := read(t, sc, s)
		if got := r.After.Complete(); fmt.Sprint(ids) != "[2]" || got != 3 {
			t.Errorf("read %v, complete up to %d; want [2] and 3", ids, got)
		}
	})
}
