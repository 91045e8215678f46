package engine

import (
	"context"

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
	for {
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
	failedKeys := make(map[string]bool)
	todo := make([]relay.Message, 0, len(batch))
	for i := range batch {
		switch m := &batch[i]; {
		case r.tail.take(m.ID): // a predecessor was killed between delivering it and saying so
			s.Skipped++
			r.Meter.Skipped(1)
		case r.waits(m, failedKeys):
			r.park(m, &s)
		case m.Err != nil:
			r.bury(m, letters[i].Class, m.Err, failedKeys, &s)
		default:
			todo = append(todo, *m)
		}
	}
	if _, err := r.deliver(ctx, todo, failedKeys, &s); err != nil {
		return err
	}
	stays := make(map[string]bool, len(s.Letters))
	for i := range s.Letters {
		stays[s.Letters[i].Message.ID] = true
	}
	for i := range letters {
		if !stays[batch[i].ID] {
			s.Redriven = append(s.Redriven, letters[i].ID)
		}
	}
	r.Logger.Info("redrove dead letters", "delivered", len(s.Redriven), "still_dead", len(s.Letters))
	return r.flush(ctx, s)
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
