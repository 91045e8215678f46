package engine

import (
	"context"
	"errors"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// redriveBatch is how many letters are delivered at once.
const redriveBatch = 200

// redriveAll delivers the stored letters that may be delivered, in order, and
// then lets the keys go that have none left. It runs between two batches, so no
// new message of a key can overtake its letters.
func (r *run) redriveAll(ctx context.Context) error {
	if len(r.parked) > 0 || r.hasLetters(ctx) {
		if err := r.flush(ctx, settlement{}); err != nil { // letters on their way are letters too
			return err
		}
	}
	for r.stopping.Err() == nil {
		var letters []Letter
		err := r.retry(ctx, "read dead letters", func() (err error) {
			letters, err = r.Ledger.Deliverable(ctx, redriveBatch)
			return err
		})
		if err != nil {
			return err
		}
		if len(letters) == 0 {
			break
		}
		if err := r.redriveSome(ctx, letters); err != nil {
			return err
		}
	}
	if len(r.parked) == 0 {
		return nil
	}
	return r.retry(ctx, "load parked keys", func() error {
		keys, err := r.Ledger.ParkedKeys(ctx)
		if err != nil {
			return err
		}
		clear(r.parked)
		for _, key := range keys {
			r.parked[key] = true
		}
		return nil
	})
}

func (r *run) hasLetters(ctx context.Context) bool {
	letters, err := r.Ledger.Deliverable(ctx, 1)
	return err != nil || len(letters) > 0
}

// redriveSome delivers letters. One that fails again stays, and so do those
// behind it.
func (r *run) redriveSome(ctx context.Context, letters []Letter) error {
	batch := make([]relay.Message, len(letters))
	for i := range letters {
		batch[i] = letters[i].Message
	}
	r.transform(batch, nil)
	var s settlement
	failed, behind := make(map[string]bool), make(map[string]bool) // keys, as in sort
	todo := make([]relay.Message, 0, len(batch))
	for i := range batch {
		switch m := &batch[i]; {
		case r.tail.take(m.ID): // a predecessor was killed between delivering it and saying so
			s.Skipped++
			r.Meter.Skipped(1)
		case r.waits(m, behind):
			r.park(m, &s)
		case m.Err != nil:
			r.bury(m, decodeClass(m), m.Err, behind, &s) // dead, though it may only have waited
		default:
			todo = append(todo, *m)
		}
	}
	left, err := r.deliver(ctx, todo, failed, &s)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.Redriven = r.redriven(letters, batch, left, s.Letters)
	r.Logger.Info("redrove dead letters", "delivered", len(s.Redriven), "still_dead", len(s.Letters))
	return errors.Join(err, r.flush(ctx, s)) // what is through is settled, also when a stop has left some
}

// redriven returns the ids of the letters that are done with: not left, nor dead
// again. One that is dead under another id, which its configuration may give it now,
// has been replaced.
func (r *run) redriven(letters []Letter, batch, left []relay.Message, dead []Letter) (ids []int64) {
	stays := make(map[string]bool, len(left))
	for i := range left {
		stays[left[i].ID] = true
	}
	again := make(map[string]bool, len(dead))
	for i := range dead {
		again[r.Ledger.Key(dead[i].Message.ID)] = true
	}
	for i := range letters {
		if !stays[batch[i].ID] && !again[letters[i].Message.ID] {
			ids = append(ids, letters[i].ID)
		}
	}
	return ids
}

// flush waits until s and everything before it is durable.
func (r *run) flush(ctx context.Context, s settlement) error {
	done := make(chan struct{})
	s.done = done
	if err := r.settle(ctx, s); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
