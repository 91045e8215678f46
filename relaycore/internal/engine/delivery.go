package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// errStopped ends a delivery that waits while the engine stops. The rest is
// delivered after the restart.
var errStopped = fmt.Errorf("the engine stops: %w", context.Canceled)

// delivery brings one batch to the sink. It retries until every message is at the
// sink, a dead letter, or parked behind one.
type delivery struct {
	*publisher
	blocked map[string]bool // keys that it parks: the publisher's parked, or those of a redrive
	out     settlement
	unknown bool // some of the unresolved messages may have arrived
	again   bool // some may have been at the sink before
}

func (p *publisher) newDelivery(blocked map[string]bool) *delivery {
	return &delivery{publisher: p, blocked: blocked}
}

// join makes one batch of c and the chunks that are ready after it. The longer the
// backlog, the larger the batches of the sink.
func (d *delivery) join(c chunk) {
	d.out = settlement{messages: c.messages, spent: c.spent, held: c.held, bufs: []*[]byte{c.buf}}
	chunks := append(d.chunks[:0], c)
	count, size := len(c.messages), c.size
	for count < d.maxBatch && size < d.maxBytes {
		next, ok := d.nextReady()
		if !ok {
			break
		}
		chunks = append(chunks, next)
		count += len(next.messages)
		size += next.size
		d.out.held = d.out.held.Plus(next.held)
		d.out.bufs = append(d.out.bufs, next.buf)
	}

	if len(chunks) > 1 {
		d.out.joined, d.out.spent = d.borrow(count), nil
		for i := range chunks {
			d.out.joined = append(d.out.joined, chunks[i].messages...)
			d.recycle(chunks[i].spent)
		}
		d.out.messages = d.out.joined
	}
	clear(chunks)
	d.chunks = chunks
}

// nextReady returns the next chunk if one is ready.
func (r *run) nextReady() (chunk, bool) {
	select {
	case c, ok := <-r.ready:
		return c, ok
	default:
		return chunk{}, false
	}
}

// partition returns the messages of the batch that are to be published. It leaves out
// those that the far end has already, and those that could not be decoded or encoded.
// In halt mode it ends before the latter, with an error. behind has the keys of
// those that became dead letters here. Their messages in todo lie before and are sent.
func (d *delivery) partition() (todo []relay.Message, behind map[string]bool, err error) {
	batch := d.out.messages
	d.tail.Passed(len(batch))
	if !d.needsPartition(batch) {
		return batch, nil, nil
	}
	todo, behind = make([]relay.Message, 0, len(batch)), make(map[string]bool)
	for i := range batch {
		m := &batch[i]
		switch {
		case d.tail.TakeExpected(m.ID):
			d.skip()
		case errors.Is(m.Err, relay.ErrFiltered): // even behind a dead letter of its key: nothing is published
			d.filtered()
		case d.isParked(m, d.blocked), d.isParked(m, behind):
			d.park(m)
		case m.Err == nil:
			todo = append(todo, *m)
		case d.OnError == OnErrorHalt:
			d.out.messages = batch[:i]
			return todo, behind, halted(m, m.Err)
		default:
			d.deadLetter(m, unreadableClass(m), m.Err, behind)
		}
	}
	return todo, behind, nil
}

// needsPartition reports whether partition has to leave out a message. Messages of
// parked keys alone need no partition, as parkBlocked parks them before each publish.
func (d *delivery) needsPartition(batch []relay.Message) bool {
	for i := range batch {
		if batch[i].Err != nil || d.tail.Has(batch[i].ID) {
			return true
		}
	}
	return false
}

// deliver publishes todo in order, in parts that the sink accepts. With an error it
// returns the messages that are neither at the sink nor dead letters.
func (d *delivery) deliver(ctx context.Context, todo []relay.Message) ([]relay.Message, error) {
	for len(todo) > 0 {
		n := d.partSize(todo)
		if unresolved, err := d.deliverPart(ctx, todo[:n]); err != nil {
			return slices.Concat(unresolved, todo[n:]), err
		}
		if todo = todo[n:]; len(todo) == 0 {
			break
		}
		if err := d.settleBefore(ctx, todo[0].ID); err != nil {
			return todo, err
		}
		if d.stopping.Err() != nil {
			return todo, errStopped
		}
	}
	return nil, nil
}

// partSize returns how many of todo the sink is given at once. A stream goes alone. So
// does the marker of a snapshot's end, once everything before it is settled, because sinks
// keep the order of a key only.
func (p *publisher) partSize(todo []relay.Message) int {
	alone := func(m *relay.Message) bool { return m.Op == relay.OpSnapshotEnd || m.Payload.Stream != nil }
	if len(todo) > 0 && alone(&todo[0]) {
		return 1
	}
	bytes := 0
	for i := range todo {
		if i > 0 && (i >= p.maxBatch || bytes+todo[i].Size() > p.maxBytes || alone(&todo[i])) {
			return i
		}
		bytes += todo[i].Size()
	}
	return len(todo)
}

// settleBefore settles the messages before the one with ID next, so that a stop does
// not repeat all of a batch that takes long. Dead letters lie in the buffers of the
// batch, so they are settled with its rest, and so is all that would come after them.
// A redrive is settled as a whole. There is no position: see confirm.
func (d *delivery) settleBefore(ctx context.Context, next string) error {
	at := slices.IndexFunc(d.out.messages, func(m relay.Message) bool { return m.ID == next })
	if at <= 0 || len(d.out.DeadLetters) > 0 {
		return nil
	}
	part := settlement{Commit: d.out.Commit, messages: d.out.messages[:at]}
	d.out.Commit, d.out.messages = Commit{}, d.out.messages[at:]
	return d.settle(ctx, part)
}

// deliverPart publishes todo until none of it is left.
func (d *delivery) deliverPart(ctx context.Context, todo []relay.Message) ([]relay.Message, error) {
	for len(todo) > 0 {
		rest, err := d.try(ctx, todo)
		if len(rest) < len(todo) {
			d.step.Progressed() // some of it got through
		}
		todo = rest
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil:
			return todo, context.Cause(ctx)
		case relay.IsFatal(err), errors.Is(err, errStopped):
			return todo, err
		}
		d.Meter.PublishFailed()
		if d.share.InTheWay() {
			return todo, fmt.Errorf("publish: %w; its large message makes room for that of another pipeline", err)
		}
		if err := d.wait(ctx, d.step.Failed(err)); err != nil {
			return todo, err
		}
	}
	d.step.Recovered() // the far end has answered for all of it, even if by a refusal
	return nil, nil
}

// try publishes todo once. It returns the messages that are left, and why they
// should not be published again at once.
func (d *delivery) try(ctx context.Context, todo []relay.Message) ([]relay.Message, error) {
	todo, err := d.dropArrived(ctx, todo)
	if err != nil {
		return todo, err
	}
	if todo = d.parkBlocked(todo); len(todo) == 0 {
		return nil, nil
	}
	if delay := d.pace.delay(todo); delay > 0 {
		if err := d.wait(ctx, delay); err != nil {
			return todo, err
		}
	}

	d.repeats = d.again || d.recovering > 0
	err = d.publish(ctx, todo)
	if err == nil {
		d.out.Delivered += int64(len(todo))
		return nil, nil
	}
	d.again = true
	d.unknown = relay.IsUnknown(err)
	if ctx.Err() != nil {
		return todo, err
	}
	partial, isPartial := errors.AsType[*relay.BatchError](err)
	switch {
	case isPartial:
		todo, err = d.applyResult(ctx, todo, partial)
	case relay.IsPermanent(err):
		return d.bisect(ctx, todo, err)
	}
	if relay.IsFatal(err) {
		err = fmt.Errorf("publish: %w", err)
	}
	return todo, err
}

// dropArrived takes out of todo what turns out to be at the far end. It looks only
// after the sink lost track, and only if the sink can be read back.
func (d *delivery) dropArrived(ctx context.Context, todo []relay.Message) ([]relay.Message, error) {
	if !d.unknown || d.resumer == nil || d.position == "" {
		return todo, nil
	}
	found, err := d.readBack(ctx, false)
	if err != nil {
		return todo, fmt.Errorf("read the far end back: %w", err)
	}
	d.unknown = false

	var arrived, rest []relay.Message
	for i := range todo {
		if found[todo[i].ID] {
			arrived = append(arrived, todo[i])
		} else {
			rest = append(rest, todo[i])
		}
	}
	d.Logger.Info("read the far end back", "arrived", len(arrived), "missing", len(rest))
	return rest, d.confirm(ctx, arrived)
}

// publish is one call of the sink, if the lease allows it.
func (p *publisher) publish(ctx context.Context, batch []relay.Message) error {
	if !p.Trusted() {
		return relay.Fatal(ErrFenced)
	}
	began := time.Now()
	err := p.Sink.Publish(ctx, batch)
	if err != nil {
		return err
	}
	p.countPublished(batch, bodies(batch), time.Since(began))
	return nil
}

// countPublished counts confirmed messages, and the latency of some of them.
func (p *publisher) countPublished(batch []relay.Message, bytes int, took time.Duration) {
	p.Meter.Published(len(batch), bytes, took)
	if d, ok := p.Sink.(relay.Duplicates); ok {
		if n := d.TakeDuplicates(); n > 0 {
			p.Meter.Skipped(n)
			p.duplicates(n, batch)
		}
	}
	if c, ok := p.Sink.(relay.Conflicts); ok {
		if n := c.TakeConflicts(); n > 0 {
			p.Meter.Conflicts(n)
			if _, outbox := p.Source.(relay.Checkpointer); !outbox { // else duplicates has counted them
				p.unexpected += int64(n)
			}
		}
	}
	for i := 0; i < len(batch); i += 1 + len(batch)/64 {
		if !batch[i].Time.IsZero() {
			p.Meter.Latency(batch[i].Time)
		}
	}
}

// duplicates counts messages that the sink had before. After a crash, an error or a dead
// letter's retry that is to be expected, and so it is of what a broker delivers. Otherwise
// another producer has used the ids, and the messages are lost.
func (p *publisher) duplicates(n int, batch []relay.Message) {
	if _, outbox := p.Source.(relay.Checkpointer); p.repeats || !outbox {
		return
	}
	p.unexpected += int64(n)
	p.Meter.Unexpected(n)
	id := ""
	if named, ok := p.Sink.(relay.DuplicateNamer); ok {
		id = named.DuplicateID()
	}
	p.Logger.Error("far end had messages already", "messages", n, "message_id", id, "from", batch[0].ID, "to", batch[len(batch)-1].ID,
		"effect", "it has not stored them again", "cause", "another producer has used their ids")
}

// applyResult sorts todo by what became of each message. It returns those that are
// still to be published, in order, and why they should not be at once.
func (d *delivery) applyResult(ctx context.Context, todo []relay.Message, result *relay.BatchError) (again []relay.Message, why error) {
	var confirmed []relay.Message
	halt := false
	for i := range todo {
		err, failed := result.Failed[i]
		switch {
		case !failed:
			confirmed = append(confirmed, todo[i])
		case halt:
			again = append(again, todo[i])
		case relay.IsPermanent(err) && d.OnError == OnErrorHalt:
			again, why, halt = append(again, todo[i]), halted(&todo[i], err), true
		case relay.IsPermanent(err):
			d.deadLetter(&todo[i], ClassRefused, err, d.blocked)
		default:
			again = append(again, todo[i])
			if relay.IsFatal(err) || why == nil && !errors.Is(err, relay.ErrHeldBack) {
				why = err
			}
		}
	}
	if len(again) == len(todo) && why == nil {
		why = result // all are held back and nothing failed: do not spin
	}
	if err := d.confirm(ctx, confirmed); err != nil {
		return again, err
	}
	return again, why
}

// confirm settles messages at the sink now, as the rest may take long. It stores no
// position: the last one still lies before everything that is unresolved. A redrive
// is settled as a whole.
func (d *delivery) confirm(ctx context.Context, confirmed []relay.Message) error {
	if len(confirmed) == 0 {
		return nil
	}
	d.countPublished(confirmed, 0, 0)
	if len(d.out.messages) == 0 {
		d.out.Delivered += int64(len(confirmed))
		return nil
	}
	d.out.messages = without(d.out.messages, confirmed)
	return d.settle(ctx, settlement{Commit: Commit{Delivered: int64(len(confirmed))}, messages: confirmed})
}

// bisect finds the message that made the sink refuse all of todo.
func (d *delivery) bisect(ctx context.Context, todo []relay.Message, refusal error) ([]relay.Message, error) {
	if len(todo) == 1 {
		if d.OnError == OnErrorHalt {
			return todo, halted(&todo[0], refusal)
		}
		d.deadLetter(&todo[0], ClassRefused, refusal, d.blocked)
		return nil, nil
	}
	half := len(todo) / 2
	if unresolved, err := d.deliverPart(ctx, todo[:half]); err != nil {
		return slices.Concat(unresolved, todo[half:]), err
	}
	return d.deliverPart(ctx, todo[half:])
}

// skip counts a message that was at the far end before.
func (d *delivery) skip() {
	d.out.Skipped++
	d.Meter.Skipped(1)
}

// filtered counts a message that the pipeline's filter drops. It is settled with its
// batch.
func (d *delivery) filtered() {
	d.out.Filtered++
	d.Meter.Filtered(1)
}

// deadLetter makes m a dead letter and, in park mode, adds its key to blocked.
func (d *delivery) deadLetter(m *relay.Message, class string, why error, blocked map[string]bool) {
	d.out.DeadLetters = append(d.out.DeadLetters, d.stored(m, DeadLetter{Class: class, Reason: why.Error(), Attempts: 1}))
	d.Meter.DeadLettered(1)
	if m.Key != "" && d.OnError == OnErrorPark {
		blocked[d.Ledger.Key(m.Key)] = true
	}
}

// logDeadLetters logs one line for all dead letters of a batch, with the first of them.
func (d *delivery) logDeadLetters() {
	first, dead := -1, 0
	for i := range d.out.DeadLetters {
		if d.out.DeadLetters[i].Parked() {
			continue
		}
		if dead++; first < 0 {
			first = i
		}
	}
	if dead == 0 {
		return
	}
	l := &d.out.DeadLetters[first]
	d.Logger.Error("messages are dead-lettered", "count", dead, "parked", len(d.out.DeadLetters)-dead,
		"first_message", l.Message.ID, "first_key", l.Message.Key, "first_class", l.Class, "err", l.Reason)
}

// park stores m behind the dead letters of its key.
func (d *delivery) park(m *relay.Message) {
	d.out.DeadLetters = append(d.out.DeadLetters, d.stored(m, DeadLetter{Class: ClassParked, Reason: "waits behind a dead letter of its key"}))
	d.Meter.Parked(1)
}

// maxStored bounds the bytes of a message that are stored with a dead letter. A larger
// one is read from its row again.
const maxStored = 1 << 20

// stored returns l with the message m, or with a reference to its row.
func (d *delivery) stored(m *relay.Message, l DeadLetter) DeadLetter {
	l.Message = *m
	_, tooLarge := errors.AsType[*budget.TooLargeError](m.Err)
	large := len(m.Row)+len(m.Before) > maxStored || m.Payload.Stream != nil
	if _, ok := d.Source.(Refetcher); !ok || m.OutboxID == 0 || !tooLarge && !large {
		return l
	}
	l.ByReference = true
	if large {
		l.Message.Row, l.Message.Payload, l.Message.Before, l.Message.Body = nil, relay.Payload{}, nil, nil
	}
	return l
}

// isParked reports whether m has to wait behind a dead letter of its key.
func (r *run) isParked(m *relay.Message, parked map[string]bool) bool {
	return len(parked) > 0 && m.Key != "" && parked[r.Ledger.Key(m.Key)]
}

// parkBlocked parks the messages of todo whose key has dead letters, and returns the
// rest.
func (d *delivery) parkBlocked(todo []relay.Message) []relay.Message {
	if len(d.blocked) == 0 || !slices.ContainsFunc(todo, func(m relay.Message) bool { return d.isParked(&m, d.blocked) }) {
		return todo
	}
	var rest []relay.Message
	for i := range todo {
		if d.isParked(&todo[i], d.blocked) {
			d.park(&todo[i])
		} else {
			rest = append(rest, todo[i])
		}
	}
	return rest
}

// wait sleeps until d has passed, or returns [errStopped] when the engine stops.
func (r *run) wait(ctx context.Context, d time.Duration) error {
	if err := backoff.Wait(ctx, d, r.stopping.Done()); err != nil {
		return err
	}
	if r.stopping.Err() != nil {
		return errStopped
	}
	return nil
}

func halted(m *relay.Message, why error) error {
	return relay.Fatal(fmt.Errorf("halted in front of message %s (on_error is halt): %w", m.ID, why))
}

// unreadableClass returns the class of a message that could not be decoded or encoded: the
// one that the error has, if it has one.
func unreadableClass(m *relay.Message) string {
	if classed, ok := errors.AsType[interface {
		error
		Class() string
	}](m.Err); ok {
		return classed.Class()
	}
	if m.Row != nil && m.Body == nil {
		return ClassEncode
	}
	return ClassDecode
}

func bodies(batch []relay.Message) (bytes int) {
	for i := range batch {
		bytes += batch[i].BodyLength()
	}
	return bytes
}

// inOrder sorts dead letters of batch into its order, in which they are redriven.
func inOrder(dead []DeadLetter, batch []relay.Message) {
	if len(dead) < 2 {
		return
	}
	at := make(map[string]int, len(batch))
	for i := range batch {
		at[batch[i].ID] = i
	}
	slices.SortStableFunc(dead, func(a, b DeadLetter) int { return at[a.Message.ID] - at[b.Message.ID] })
}

// without returns the messages of all that are not in some.
func without(all, some []relay.Message) []relay.Message {
	if len(some) == 0 {
		return all
	}
	drop := make(map[string]bool, len(some))
	for i := range some {
		drop[some[i].ID] = true
	}
	rest := make([]relay.Message, 0, len(all))
	for i := range all {
		if !drop[all[i].ID] {
			rest = append(rest, all[i])
		}
	}
	return rest
}
