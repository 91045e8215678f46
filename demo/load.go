package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// writeAndKill runs writers while the relay is killed and restarted twice.
func (d *demo) writeAndKill(ctx context.Context, writing time.Duration) error {
	show.step(fmt.Sprintf("%d writers for %s; the relay is killed (kill -9) twice meanwhile", writers, writing))
	until, cancel := context.WithTimeout(ctx, writing)
	defer cancel()
	var written atomic.Int64
	errs := make(chan error, writers)
	var group sync.WaitGroup
	for range writers {
		group.Go(func() { errs <- d.write(ctx, until, &written) })
	}
	for range 2 {
		if err := sleep(until, writing*3/10); err != nil {
			break // the writers failed or the demo was interrupted
		}
		d.relay.kill()
		before := written.Load()
		show.linef("killed after %d changes; the writers continue", before)
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		if err := d.relay.start(d.pg.url("relay")); err != nil {
			return err
		}
		began := time.Now()
		if _, err := d.relay.awaitHealthy(ctx, 2); err != nil {
			return err
		}
		show.linef("restarted: both pipelines run after %d ms; at least %d changes wait for them",
			time.Since(began).Milliseconds(), written.Load()-before)
	}
	group.Wait()
	for range writers {
		if err := <-errs; err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	show.linef("%d changes were committed", written.Load())
	return nil
}

// write inserts and updates orders until until ends, one transaction each. It holds
// some transactions open, so that ids commit out of order, and rolls some back.
func (d *demo) write(ctx, until context.Context, written *atomic.Int64) error {
	for until.Err() == nil {
		tx, err := d.db.Begin(ctx)
		if err != nil {
			return err
		}
		var id int64
		err = tx.QueryRow(ctx, "INSERT INTO public.orders (customer, total) VALUES ('customer', $1) RETURNING id", rand.IntN(1000)).Scan(&id)
		if err == nil && rand.IntN(50) == 0 {
			err = sleep(ctx, time.Duration(rand.IntN(100))*time.Millisecond)
		}
		if err == nil && rand.IntN(20) == 0 {
			if err := tx.Rollback(ctx); err != nil {
				return err
			}
			continue
		}
		if err == nil {
			err = tx.Commit(ctx)
		}
		if err != nil {
			return err
		}
		written.Add(1)
		for range rand.IntN(3) {
			if _, err := d.db.Exec(ctx, "UPDATE public.orders SET total = total + 1, version = version + 1 WHERE id = $1", id); err != nil {
				return err
			}
			written.Add(1)
		}
	}
	return nil
}
