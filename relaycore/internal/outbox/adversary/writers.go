package adversary

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

const schema = `
DROP SCHEMA IF EXISTS pgtrickle CASCADE;
CREATE SCHEMA pgtrickle;
DROP TABLE IF EXISTS keys, cursor;
CREATE TABLE pgtrickle.outbox_ledger (id bigserial PRIMARY KEY, refresh_id uuid, created_at timestamptz NOT NULL DEFAULT now(),
	inserted_count bigint NOT NULL DEFAULT 0, deleted_count bigint NOT NULL DEFAULT 0,
	is_claim_check bool NOT NULL DEFAULT false, payload jsonb);
CREATE TABLE keys (k bigint PRIMARY KEY, seq bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50);
INSERT INTO keys SELECT g FROM generate_series(1, 4000) g;
INSERT INTO keys SELECT 100000 + g FROM generate_series(1, 64 * 500) g;
CREATE TABLE cursor (state jsonb, last_id bigint, epoch bigint);
INSERT INTO cursor VALUES (NULL, 0, 0);
`

const xidColumn = `ALTER TABLE pgtrickle.outbox_ledger ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id();
	CREATE INDEX ON pgtrickle.outbox_ledger (xid, id);`

// writeSQL numbers events under their keys' locks and writes one outbox row each.
const writeSQL = `WITH u AS (UPDATE keys SET seq = seq + 1 WHERE k = ANY ($1) RETURNING k, seq),
	o AS (INSERT INTO pgtrickle.outbox_ledger (inserted_count, payload)
		SELECT 1, jsonb_build_object('v', 1, 'inserted', jsonb_build_array(jsonb_build_object('k', k, 's', seq))) FROM u)
	SELECT k, seq FROM u`

// war is the writers' side of a run.
type war struct {
	opts       Options
	book       *book
	rolledBack atomic.Int64
	prepared   atomic.Int64
	canPrepare bool
	failure    atomic.Pointer[error]
}

func (w *war) fail(err error) {
	if err != nil {
		w.failure.CompareAndSwap(nil, &err)
	}
}

// run writes until ctx ends.
func (w *war) run(ctx context.Context) {
	var wg sync.WaitGroup
	for n := range w.opts.Writers {
		wg.Go(func() { w.fail(w.writer(ctx, n)) })
	}
	wg.Go(func() { w.fail(w.vacuum(ctx)) })
	if w.opts.Foreign != "" {
		wg.Go(func() { w.fail(w.stranger(ctx)) })
	}
	wg.Wait()
}

func (w *war) writer(ctx context.Context, n int) error {
	r := rand.New(rand.NewPCG(w.opts.Seed, uint64(n)))
	steady := context.WithoutCancel(ctx)
	conn, err := pgx.Connect(steady, w.opts.URL)
	if err != nil {
		return fmt.Errorf("writer %d: %w", n, err)
	}
	defer func() { conn.Close(steady) }()
	for i := 0; ctx.Err() == nil; i++ {
		if w.opts.Cache > 1 && r.IntN(50) == 0 { // and the ids it had taken are lost
			_ = conn.Close(steady)
			if conn, err = pgx.Connect(steady, w.opts.URL); err != nil {
				return fmt.Errorf("writer %d: %w", n, err)
			}
		}
		if err := w.transaction(ctx, conn, r, n, i); err != nil {
			return fmt.Errorf("writer %d: %w", n, err)
		}
	}
	return nil
}

// transaction writes a few events in one of the ways an application might.
func (w *war) transaction(ctx context.Context, conn *pgx.Conn, r *rand.Rand, n, i int) error {
	steady := context.WithoutCancel(ctx)
	tx, err := conn.Begin(steady)
	if err != nil {
		return err
	}
	defer tx.Rollback(steady)
	var events []event
	bulk := n < w.opts.Bulk
	for range 1 + r.IntN(3) {
		sub := tx
		nested := r.IntN(4) == 0
		if nested {
			if sub, err = tx.Begin(steady); err != nil {
				return err
			}
		}
		written, err := write(steady, sub, w.pick(r, n, bulk))
		if err != nil { // a deadlock, as keys are taken in any order
			w.rolledBack.Add(1)
			return nil
		}
		switch {
		case nested && r.IntN(2) == 0:
			err = sub.Rollback(steady)
		case nested:
			err = sub.Commit(steady)
			fallthrough
		default:
			events = append(events, written...)
		}
		if err != nil {
			return err
		}
		if bulk {
			break
		}
	}
	hold(ctx, r, n)
	switch {
	case r.IntN(8) == 0:
		w.rolledBack.Add(1)
		return tx.Rollback(steady)
	case w.canPrepare && n%8 == 3 && r.IntN(3) == 0:
		return w.prepare(ctx, conn, r, fmt.Sprintf("adversary_%d_%d", n, i), events)
	}
	if err := tx.Commit(steady); err != nil {
		return err
	}
	w.book.commit(events)
	return nil
}

// pick chooses keys: hot ones that all fight for, cold ones, or for a bulk writer
// many of its own.
func (w *war) pick(r *rand.Rand, n int, bulk bool) []int64 {
	if bulk {
		keys := make([]int64, 0, 500)
		for i := range int64(100 + r.IntN(400)) {
			keys = append(keys, 100000+int64(n%64)*500+i+1)
		}
		return keys
	}
	if w.opts.OwnKeys {
		return []int64{1 + int64(n%100)*40 + r.Int64N(40)}
	}
	if n%3 == 0 {
		return []int64{41 + r.Int64N(3900)}
	}
	return []int64{1 + r.Int64N(40)}
}

// hold keeps the transaction open: mostly for an instant, sometimes for long.
func hold(ctx context.Context, r *rand.Rand, n int) {
	d := time.Duration(r.IntN(4)) * time.Millisecond
	switch {
	case n == 9: // idle in transaction
		d = time.Duration(2000+r.IntN(6000)) * time.Millisecond
	case n%8 == 1:
		d = time.Duration(r.IntN(1500)) * time.Millisecond
	case n%2 == 0:
		d = time.Duration(r.IntN(30)) * time.Millisecond
	}
	if d > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
}

func write(ctx context.Context, tx pgx.Tx, keys []int64) ([]event, error) {
	rows, err := tx.Query(ctx, writeSQL, keys)
	if err != nil {
		return nil, err
	}
	var events []event
	var e event
	_, err = pgx.ForEachRow(rows, []any{&e.key, &e.seq}, func() error {
		events = append(events, e)
		return nil
	})
	return events, err
}

// prepare commits in two phases, with a pause between them.
func (w *war) prepare(ctx context.Context, conn *pgx.Conn, r *rand.Rand, name string, events []event) error {
	steady := context.WithoutCancel(ctx)
	if _, err := conn.Exec(steady, "PREPARE TRANSACTION '"+name+"'"); err != nil {
		return err
	}
	w.prepared.Add(1)
	hold(ctx, r, 1)
	if r.IntN(4) == 0 {
		_, err := conn.Exec(steady, "ROLLBACK PREPARED '"+name+"'")
		w.rolledBack.Add(1)
		return err
	}
	if _, err := conn.Exec(steady, "COMMIT PREPARED '"+name+"'"); err != nil {
		return err
	}
	w.book.commit(events)
	return nil
}

// vacuum freezes what it can, again and again.
func (w *war) vacuum(ctx context.Context) error {
	steady := context.WithoutCancel(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(3 * time.Second):
		}
		conn, err := pgx.Connect(steady, w.opts.URL)
		if err != nil {
			return err
		}
		_, err = conn.Exec(steady, "VACUUM (FREEZE) pgtrickle.outbox_ledger")
		if err == nil {
			_, err = conn.Exec(steady, "VACUUM (ANALYZE) keys")
		}
		_ = conn.Close(steady)
		if err != nil {
			return err
		}
	}
}

// stranger keeps a transaction with an id open in another database.
func (w *war) stranger(ctx context.Context) error {
	steady := context.WithoutCancel(ctx)
	conn, err := pgx.Connect(steady, w.opts.Foreign)
	if err != nil {
		return err
	}
	defer conn.Close(steady)
	for ctx.Err() == nil {
		if _, err := conn.Exec(steady, "BEGIN; SELECT pg_current_xact_id()"); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(30 * time.Second):
		}
		if _, err := conn.Exec(steady, "COMMIT"); err != nil {
			return err
		}
	}
	return nil
}
