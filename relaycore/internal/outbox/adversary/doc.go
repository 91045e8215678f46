// Package adversary tries to make an outbox reader lose or reorder rows.
//
// Dozens of writers hold their transactions open for random times, roll back, use
// savepoints, prepare transactions and sit idle in them. A stranger keeps a write
// transaction open in another database, and VACUUM FREEZE runs. The reader is a process of
// its own, and is killed with SIGKILL at random points. This process records the rows that
// were committed and those that were delivered, and compares them at the end.
//
// Each event has a key and a number that counts the key's committed events, and
// is written under a lock on the key. So the order in which the events of a key
// were committed is known, and no number may be missing.
//
// The reader also reports the id up to which everything is settled. No row may come below
// it, and in the end it must be the last id that was handed out.
package adversary

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"
)

// The ways to read.
const (
	Window = "window" // snapshot windows
	Fence  = "fence"  // the gap fence
	Naive  = "naive"  // id > last: loses rows, which shows that the harness bites
)

// Options of a run. The zero value of everything but URL and Strategy is usable.
type Options struct {
	URL      string // a database of its own
	Foreign  string // another database of the same cluster, for the stranger; "" = none
	Strategy string
	Writers  int           // 0 means 32
	Bulk     int           // of these, writers of many rows at once
	For      time.Duration // how long they write; 0 means 20s
	Rows     int64         // and until at least so many rows are committed
	Cache    int           // the sequence's CACHE; 0 means 1. More is for Window only
	OwnKeys  bool          // each key has one writer, so that a CACHE cannot turn it around
	NoKill   bool          // let the reader live
	Seed     uint64
	Reader   []string  // command that runs ReaderMain; nil means this executable
	Log      io.Writer // progress; nil means none
}

func (o *Options) defaults() {
	o.Writers = cmp.Or(o.Writers, 32)
	o.For = cmp.Or(o.For, 20*time.Second)
	o.Cache = cmp.Or(o.Cache, 1)
	if o.Log == nil {
		o.Log = io.Discard
	}
}

// Report is what a run found.
type Report struct {
	Strategy   string
	Server     string
	Committed  int64
	Delivered  int64 // distinct
	Lost       int64
	Phantom    int64 // delivered and never committed
	Repeated   int64
	Inversions int64 // events that came for the first time after a later one of their key
	Kills      int
	Took       time.Duration
	Wait       []time.Duration // from the commit's return to the delivery, sorted; a sample
	Prepared   int64
	RolledBack int64
	Unsettled  int64 // ids at the end that were never reported as settled
}

// Quantile of the waits.
func (r *Report) Quantile(q float64) time.Duration {
	if len(r.Wait) == 0 {
		return 0
	}
	slices.Sort(r.Wait)
	return r.Wait[min(int(float64(len(r.Wait))*q), len(r.Wait)-1)]
}

// Bad returns an error if the run found one.
func (r *Report) Bad() error {
	if r.Lost == 0 && r.Inversions == 0 && r.Phantom == 0 && r.Unsettled == 0 && r.Committed > 0 {
		return nil
	}
	return fmt.Errorf("%s", r)
}

func (r *Report) String() string {
	return fmt.Sprintf("%s on PostgreSQL %s: committed %d, delivered %d, lost %d, phantoms %d, inversions %d, unsettled %d, repeated %d, "+
		"reader killed %d times, rolled back %d, prepared %d transactions, %s; commit to delivery p50 %s p99 %s",
		r.Strategy, r.Server, r.Committed, r.Delivered, r.Lost, r.Phantom, r.Inversions, r.Unsettled, r.Repeated,
		r.Kills, r.RolledBack, r.Prepared, r.Took.Round(time.Second),
		r.Quantile(.5).Round(100*time.Microsecond), r.Quantile(.99).Round(100*time.Microsecond))
}
