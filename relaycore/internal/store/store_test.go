package store_test

import (
	"encoding/json"
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

func TestCursorsOfAGroup(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	ctx := t.Context()
	reverse := store.Key{Direction: relay.Reverse, Name: "orders"}
	session, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Release()
	locks := store.New(session, "default")
	if epochs, err := locks.Acquire(ctx, []store.Key{reverse}, "me"); err != nil || epochs[reverse] != 1 {
		t.Fatalf("Acquire = %v, %v; want 1", epochs, err)
	}
	s := store.New(pool, "default")
	if err := s.Report(ctx, orders, "no \x00 backend"); err != nil {
		t.Fatal(err)
	}
	if err := store.New(pool, "other").Report(ctx, orders, "not ours"); err != nil {
		t.Fatal(err)
	}

	got, err := s.List(ctx)
	want := map[store.Key]store.Cursor{
		orders:  {Epoch: 1, Status: store.StatusFailed, Error: "no \uFFFD backend"},
		reverse: {Epoch: 1, Owner: "me", Status: "new", Held: true},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(store.Cursor{}, "Updated")); err != nil || diff != "" {
		t.Errorf("List: %v, -want +got\n%s", err, diff)
	}

	free := store.Key{Direction: relay.Reverse, Name: "free"}
	epochs, err := s.Acquire(ctx, []store.Key{reverse, free}, "you")
	if want := (map[store.Key]int64{free: 1}); err != nil || !maps.Equal(epochs, want) {
		t.Errorf("Acquire by another session = %v, %v; want %v", epochs, err, want)
	}
	if err := locks.Unlock(ctx, reverse); err != nil {
		t.Fatal(err)
	}
	if got, err := s.List(ctx); err != nil || got[reverse].Held {
		t.Errorf("after Unlock the cursor is %+v, %v; want it not held", got[reverse], err)
	}
}

func TestWhereAForwardPipelineIs(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	ctx := t.Context()
	s := store.New(pool, "default")
	if c, found, err := s.Checkpoint(ctx, "none"); found || err != nil {
		t.Errorf("Checkpoint of a new pipeline = %+v, %v, %v; want none", c, found, err)
	}
	if id, found, err := s.Offset(ctx, "none"); found || err != nil {
		t.Errorf("Offset of a new pipeline = %d, %v, %v; want none", id, found, err)
	}
	if state, err := s.Load(ctx, store.Key{Direction: relay.Forward, Name: "none"}); err != nil || state.Checkpoint.State != nil {
		t.Errorf("Load of a new pipeline = %+v, %v; want the zero state", state, err)
	}

	l, _ := open(t, pool, 1)
	l.SetSource(func() string { return "pgtrickle.outbox_orders" })
	commit(t, l, engine.Commit{Checkpoint: &relay.Checkpoint{State: json.RawMessage(`{"at": 7}`), LastID: 7}})
	if _, err := pool.Exec(ctx, `INSERT INTO pgtrickle.relay_consumer_offsets (relay_group_id, pipeline_id, last_change_id) VALUES ('other', 'orders', 3)`); err != nil {
		t.Fatal(err)
	}

	c, found, err := s.Checkpoint(ctx, "orders")
	if want := (relay.Checkpoint{State: json.RawMessage(`{"at": 7}`), LastID: 7}); err != nil || !found || !cmp.Equal(c, want) {
		t.Errorf("Checkpoint = %s, %v, %v; want %s", c.State, found, err, want.State)
	}
	if id, found, err := s.Offset(ctx, "orders"); id != 7 || !found || err != nil {
		t.Errorf("Offset = %d, %v, %v; want 7", id, found, err)
	}
	readers, err := store.Readers(ctx, pool)
	want := []store.Reader{
		{Pipeline: "orders", Group: "default", Source: "pgtrickle.outbox_orders", LastID: 7, Checkpoint: json.RawMessage(`{"at": 7}`), Started: true},
		{Pipeline: "orders", Group: "other", LastID: 3, Started: true},
	}
	if diff := cmp.Diff(want, readers); err != nil || diff != "" {
		t.Errorf("Readers: %v, -want +got\n%s", err, diff)
	}
}

func TestADatabaseWithoutTheCatalog(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := t.Context()
	s := store.New(pool, "default")
	if _, found, err := s.Checkpoint(ctx, "orders"); found || err != nil {
		t.Errorf("Checkpoint = %v, %v; want none", found, err)
	}
	if _, found, err := s.Offset(ctx, "orders"); found || err != nil {
		t.Errorf("Offset = %v, %v; want none", found, err)
	}
	if readers, err := store.Readers(ctx, pool); len(readers) > 0 || err != nil {
		t.Errorf("Readers = %v, %v; want none", readers, err)
	}
	if err := store.Register(ctx, pool, store.Instance{ID: "a", LockKey: 1}); !errors.Is(err, store.ErrNoCatalog) {
		t.Errorf("Register = %v, want ErrNoCatalog", err)
	}
}

func TestDeadLettersAsOperatorsSeeThem(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	ctx := t.Context()
	s := store.New(pool, "default")
	l, _ := open(t, pool, 1)
	parked := refused(2, "k")
	parked.Class = engine.ClassParked
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{refused(1, "k"), parked, refused(3, "other")}})

	counts, err := s.CountDeadLetters(ctx)
	if diff := cmp.Diff(map[store.Key]store.DeadLetterCounts{orders: {Dead: 2, Parked: 1}}, counts); err != nil || diff != "" {
		t.Errorf("CountDeadLetters: %v, -want +got\n%s", err, diff)
	}
	ids, dead, err := s.DeadRows(ctx, "orders")
	if !cmp.Equal(ids, []int64{1, 2, 3}) || !cmp.Equal(dead, []bool{true, false, true}) || err != nil {
		t.Errorf("DeadRows = %v, %v, %v; want 1 and 3 dead, 2 parked", ids, dead, err)
	}

	for name, tc := range map[string]struct {
		filter store.DeadLetterFilter
		want   int
	}{
		"all":            {store.DeadLetterFilter{}, 3},
		"pipeline":       {store.DeadLetterFilter{Pipeline: "orders", Direction: relay.Forward}, 3},
		"other pipeline": {store.DeadLetterFilter{Pipeline: "in"}, 0},
		"key":            {store.DeadLetterFilter{Key: "k"}, 2},
		"class":          {store.DeadLetterFilter{Class: engine.ClassParked}, 1},
		"too old":        {store.DeadLetterFilter{Before: time.Now().Add(-time.Hour)}, 0},
		"not too old":    {store.DeadLetterFilter{After: time.Now().Add(-time.Hour)}, 3},
	} {
		if got, err := s.ListDeadLetters(ctx, tc.filter); err != nil || len(got) != tc.want {
			t.Errorf("%s: %d dead letters, %v; want %d", name, len(got), err, tc.want)
		}
	}

	if n, err := s.RetryDeadLetters(ctx, store.DeadLetterFilter{Pipeline: "orders", Key: "k"}); err != nil || n != 1 {
		t.Errorf("RetryDeadLetters = %d, %v; want 1", n, err)
	}
	if n, err := s.DiscardDeadLetters(ctx, store.DeadLetterFilter{Pipeline: "orders", Key: "other"}); err != nil || n != 1 {
		t.Errorf("DiscardDeadLetters = %d, %v; want 1", n, err)
	}
	if _, err := s.RetryDeadLetters(ctx, store.DeadLetterFilter{}); err == nil {
		t.Error("RetryDeadLetters without a pipeline succeeds")
	}
}
