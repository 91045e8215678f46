package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

const (
	writers = 3
	keys    = 100
)

// flow is a stream of events whose keys one writer has to itself.
type flow struct {
	rng  *rand.Rand
	name string
	own  []string
	seq  map[string]int64
	ids  *atomic.Int64
}

func newFlows(seed uint64, name string) []*flow {
	var ids atomic.Int64
	flows := make([]*flow, writers)
	for w := range flows {
		f := &flow{rng: rand.New(rand.NewPCG(seed, uint64(w))), name: name, seq: make(map[string]int64), ids: &ids}
		for k := w; k < keys; k += writers {
			f.own = append(f.own, fmt.Sprintf("%s-%d", name, k))
		}
		flows[w] = f
	}
	return flows
}

// next makes the events of one transaction.
func (f *flow) next() []rig.Event { return f.some(1 + f.rng.IntN(20)) }

// some makes n events.
func (f *flow) some(n int) []rig.Event {
	events := make([]rig.Event, n)
	for i := range events {
		k := f.own[f.rng.IntN(len(f.own))]
		f.seq[k]++
		events[i] = rig.Event{ID: f.ids.Add(1), K: k, Seq: f.seq[k], Note: "ü " + fmt.Sprint(f.rng.Uint64())}
	}
	return events
}

// insertAll writes rows until stop is done: transactions of several sizes and
// holds, some rolled back, all repeated when PostgreSQL goes away.
func insertAll(stop context.Context, db *rig.Database, flows []*flow) {
	var wg sync.WaitGroup
	for _, f := range flows {
		wg.Go(func() {
			for stop.Err() == nil {
				events, hold, rollback := f.next(), time.Duration(f.rng.IntN(40))*time.Millisecond, f.rng.IntN(10) == 0
				ctx, cancel := context.WithTimeout(context.WithoutCancel(stop), 10*time.Second)
				// An error is part of the storm: what was committed is asked afterwards.
				_ = insert(ctx, db, events, hold, rollback)
				cancel()
				pause(stop, time.Duration(20+f.rng.IntN(60))*time.Millisecond)
			}
		})
	}
	wg.Wait()
}

func insert(ctx context.Context, db *rig.Database, events []rig.Event, hold time.Duration, rollback bool) error {
	raw, err := json.Marshal(events)
	if err != nil {
		return err
	}
	tx, err := db.Pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }() // adds nothing to the error of Commit
	if _, err := tx.Exec(ctx, `INSERT INTO events SELECT * FROM json_populate_recordset(NULL::events, $1::json)`, string(raw)); err != nil {
		return err
	}
	pause(ctx, hold)
	if rollback {
		return nil
	}
	return tx.Commit(ctx)
}

// produceAll sends events to the far end until stop is done, and returns what
// the far end has confirmed.
func produceAll(t *testing.T, stop context.Context, end ends.End, flows []*flow) []rig.Event { //nolint:revive // stop is no ordinary context
	var wg sync.WaitGroup
	var mu sync.Mutex
	var sent []rig.Event
	for _, f := range flows {
		wg.Go(func() {
			for stop.Err() == nil {
				events := f.next()
				ctx, cancel := context.WithTimeout(context.WithoutCancel(stop), hung)
				err := end.Produce(ctx, records(events))
				cancel()
				if err != nil {
					t.Errorf("produce: %v", err)
					return
				}
				mu.Lock()
				sent = append(sent, events...)
				mu.Unlock()
				pause(stop, time.Duration(20+f.rng.IntN(60))*time.Millisecond)
			}
		})
	}
	wg.Wait()
	slices.SortFunc(sent, func(a, b rig.Event) int { return int(a.ID - b.ID) })
	return sent
}

func records(events []rig.Event) []ends.Record {
	records := make([]ends.Record, len(events))
	for i, e := range events {
		body, err := json.Marshal(e)
		if err != nil {
			panic(err) // an Event is nothing but numbers and strings
		}
		records[i] = ends.Record{ID: fmt.Sprintf("%s-event-%d", e.K, e.ID), Key: e.K, Body: body}
	}
	return records
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
