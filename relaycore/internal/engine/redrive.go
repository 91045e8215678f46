package engine

import (
	"context"
	"errors"
	"slices"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// redriveBatch is how many dead letters are delivered at once.
const redriveBatch = 200

// redriveAll delivers the stored dead letters that may be delivered, in order, and
// then unparks the keys that have none left. It runs between two batches, so no new
// message of a key can overtake its dead letters.
func (p *publisher) redriveAll(ctx context.Context) error {
	if len(p.parked) > 0 || p.hasDeliverable(ctx) {
		if err := p.flush(ctx, settlement{}); err != nil { // dead letters may be on their way to the ledger
			return err
		}
	}
	for p.stopping.Err() == nil {
		var stored []DeadLetter
		err := p.retry(ctx, "read dead letters", func() (err error) {
			stored, err = p.Ledger.Deliverable(ctx, redriveBatch)
			return err
		})
		if err != nil {
			return err
		}
		if len(stored) == 0 {
			break
		}
		if stored[0].ByReference {
			err = p.redriveReference(ctx, stored[0])
		} else {
			err = p.redriveSome(ctx, untilReference(stored))
		}
		if err != nil {
			return err
		}
	}
	if len(p.parked) == 0 {
		return nil
	}
	return p.loadParked(ctx)
}

func (p *publisher) hasDeliverable(ctx context.Context) bool {
	stored, err := p.Ledger.Deliverable(ctx, 1)
	return err != nil || len(stored) > 0
}

// redriveSome delivers dead letters. One that fails again stays, and so do those
// behind it.
func (p *publisher) redriveSome(ctx context.Context, stored []DeadLetter) error {
	batch := make([]relay.Message, len(stored))
	for i := range stored {
		batch[i] = stored[i].Message
		batch[i].DeliveryID = relay.DeliveryID(p.State.Identity, batch[i].ID)
	}
	p.transform(batch, nil)

	d := p.newDelivery(make(map[string]bool)) // all their keys are parked already
	d.again = true
	left, err := d.deliver(ctx, d.partitionRedrive(batch))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	d.out.Redriven = p.redriven(stored, batch, left, d.out.DeadLetters)
	p.Logger.Info("redrove dead letters", "delivered", len(d.out.Redriven), "still_dead", len(d.out.DeadLetters))
	// What was delivered is settled, even if a stop left some.
	return errors.Join(err, p.flush(ctx, d.out))
}

// untilReference returns the dead letters before the first one by reference.
func untilReference(stored []DeadLetter) []DeadLetter {
	if i := slices.IndexFunc(stored, func(l DeadLetter) bool { return l.ByReference }); i > 0 {
		return stored[:i]
	}
	return stored
}

// redriveReference reads a dead letter's row again, and delivers it. A row that was too
// large to be read may have several messages.
func (p *publisher) redriveReference(ctx context.Context, stored DeadLetter) error {
	batch, reserved := []relay.Message(nil), int64(0)
	defer func() { p.Budget.ReleaseLarge(reserved) }()
	err := p.retry(ctx, "read the row of a dead letter", func() (err error) {
		batch, err = p.refetch(ctx, &stored, &reserved)
		return err
	})
	if err != nil {
		return err
	}
	p.transform(batch, nil)
	if stored.Class == ClassTooLarge { // no tombstone was made, as its key was not known
		all, err := p.withTombstones(ctx, batch)
		if err != nil {
			return err
		}
		if all != nil {
			batch = all
		}
	}

	d := p.newDelivery(make(map[string]bool))
	d.again = true
	left, err := d.deliver(ctx, d.partitionRedrive(batch))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	again := slices.ContainsFunc(d.out.DeadLetters, func(l DeadLetter) bool { return p.Ledger.Key(l.Message.ID) == stored.Message.ID })
	if len(left) == 0 && !again {
		d.out.Redriven = []int64{stored.ID}
	}
	p.Logger.Info("redrove dead letter from its row", "outbox_id", stored.Message.OutboxID, "still_dead", len(d.out.DeadLetters))
	return errors.Join(err, p.flush(ctx, d.out))
}

// refetch returns the messages of a dead letter's row: all, if the row was never read.
// Without a row it returns the dead letter's own message with the error.
func (p *publisher) refetch(ctx context.Context, stored *DeadLetter, reserved *int64) ([]relay.Message, error) {
	source, ok := p.Source.(Refetcher)
	if !ok {
		return nil, relay.Fatal(errors.New("dead letter without a body, from a source that cannot read it again"))
	}
	batch, err := source.Refetch(ctx, stored.Message.OutboxID, func(bytes int64) error {
		if *reserved > 0 {
			return nil // by a call that failed later
		}
		n := bytes * int64(p.Copies)
		if err := p.Budget.AcquireLarge(ctx, n); err != nil {
			return err
		}
		*reserved = n
		return nil
	})
	if err == nil && stored.Class != ClassTooLarge {
		batch = slices.DeleteFunc(batch, func(m relay.Message) bool { return p.Ledger.Key(m.ID) != stored.Message.ID })
		if len(batch) == 0 {
			err = relay.Permanent(errors.New("its row no longer has this message; discard it"))
		}
	}
	if relay.IsPermanent(err) {
		failed := stored.Message
		failed.Err = err
		return []relay.Message{failed}, nil
	}
	return batch, err
}

// partitionRedrive is partition for dead letters. One that cannot be encoded is dead,
// even if it was only parked before.
func (d *delivery) partitionRedrive(batch []relay.Message) (todo []relay.Message) {
	todo = make([]relay.Message, 0, len(batch))
	behind := make(map[string]bool)
	for i := range batch {
		switch m := &batch[i]; {
		case d.tail.Take(m.ID): // the owner before delivered it and stopped before it stored that
			d.skip()
		case errors.Is(m.Err, relay.ErrFiltered):
			d.filtered()
		case d.isParked(m, behind):
			d.park(m)
		case m.Err != nil:
			d.deadLetter(m, unreadableClass(m), m.Err, behind)
		default:
			todo = append(todo, *m)
		}
	}
	return todo
}

// redriven returns the ids of the dead letters that are not left and not dead again.
// One that is dead under another id, which its configuration may give it now, was
// replaced.
func (p *publisher) redriven(stored []DeadLetter, batch, left []relay.Message, dead []DeadLetter) (ids []int64) {
	stays := make(map[string]bool, len(left))
	for i := range left {
		stays[left[i].ID] = true
	}
	again := make(map[string]bool, len(dead))
	for i := range dead {
		again[p.Ledger.Key(dead[i].Message.ID)] = true
	}
	for i := range stored {
		if !stays[batch[i].ID] && !again[stored[i].Message.ID] {
			ids = append(ids, stored[i].ID)
		}
	}
	return ids
}

// flush waits until s and everything before it is durable.
func (p *publisher) flush(ctx context.Context, s settlement) error {
	done := make(chan struct{})
	s.done = done
	if err := p.settle(ctx, s); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
