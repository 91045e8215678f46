package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// settlement is what became of a batch, on its way to a checkpoint.
type settlement struct {
	Commit
	messages []relay.Message // to be acknowledged
	spent    []relay.Message // the source's, to be used again, and messages may lie in it
	joined   []relay.Message // as spent, of the engine
	bytes    int64           // to be released
	bufs     []*[]byte       // to be reused
	done     chan<- struct{} // closed once it is durable; nil if nobody waits
}

// publishAll delivers what is ready until there is no more.
func (r *run) publishAll(ctx context.Context) error {
	if err := r.redriveAll(ctx); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case c, ok := <-r.ready:
			if !ok {
				return nil
			}
			if err := r.publishBatch(ctx, c); err != nil {
				return err
			}
		case <-r.redrive:
			if err := r.redriveAll(ctx); err != nil {
				return err
			}
		}
	}
}

// publishBatch delivers c and whatever else is ready, and hands the outcome on.
func (r *run) publishBatch(ctx context.Context, c chunk) error {
	s := r.gather(c)
	r.Meter.Delivering(oldest(s.messages))
	defer r.Meter.Delivering(time.Time{})
	batch := s.messages
	todo, behind, err := r.sort(&s)
	unresolved, deliverErr := r.deliver(ctx, todo, r.parked, &s)
	maps.Copy(r.parked, behind)
	inOrder(s.Letters, batch)
	if deliverErr != nil {
		err = deliverErr
	}
	if ctx.Err() != nil {
		r.release(s.bytes)
		return context.Cause(ctx)
	}
	switch {
	case err != nil:
		// The sink's position stays: it has to lie before what is unresolved, so
		// that the next owner finds the part of it that did arrive.
		s.messages = without(s.messages, unresolved)
	case r.resumer != nil && r.tail.open == 0:
		if s.Position, err = r.resumer.Position(ctx); err != nil {
			err = fmt.Errorf("mark the sink's position: %w", err)
		}
	}
	return errors.Join(err, r.settle(ctx, s))
}

// inOrder puts letters of batch into its order, in which they are redriven.
func inOrder(letters []Letter, batch []relay.Message) {
	if len(letters) < 2 {
		return
	}
	places := make(map[string]int, len(batch))
	for i := range batch {
		places[batch[i].ID] = i
	}
	slices.SortStableFunc(letters, func(a, b Letter) int { return places[a.Message.ID] - places[b.Message.ID] })
}

// oldest returns the time of the first message that has one: a batch is in order.
func oldest(batch []relay.Message) time.Time {
	for i := range batch {
		if !batch[i].Time.IsZero() {
			return batch[i].Time
		}
	}
	return time.Time{}
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

func (r *run) settle(ctx context.Context, s settlement) error {
	select {
	case r.settled <- s:
		return nil
	case <-ctx.Done():
		r.release(s.bytes)
		return context.Cause(ctx)
	}
}

// gather joins c with the chunks that are ready behind it, so that the sink gets
// batches as large as the backlog is long.
func (r *run) gather(c chunk) settlement {
	s := settlement{messages: c.messages, spent: c.messages, bytes: c.bytes, bufs: []*[]byte{c.buf}}
	chunks := append(r.gathered[:0], c)
	count, size := len(c.messages), c.size
	for count < r.maxBatch && size < r.maxBytes {
		next, ok := r.poll()
		if !ok {
			break
		}
		chunks = append(chunks, next)
		count += len(next.messages)
		size += next.size
		s.bytes += next.bytes
		s.bufs = append(s.bufs, next.buf)
	}
	if len(chunks) > 1 {
		s.joined, s.spent = r.room(count), nil
		for i := range chunks {
			s.joined = append(s.joined, chunks[i].messages...)
			r.recycle(chunks[i].messages)
		}
		s.messages = s.joined
	}
	clear(chunks)
	r.gathered = chunks
	return s
}

// room returns an empty slice for n messages, a used one if there is one.
func (r *run) room(n int) []relay.Message {
	var used []relay.Message
	select {
	case used = <-r.joined:
	default:
	}
	return slices.Grow(used, n)
}

// leave takes back what room gave.
func (r *run) leave(used []relay.Message) {
	clear(used) // it must not hold on to the rows that were in it
	select {
	case r.joined <- used[:0]:
	default:
	}
}

// recycle gives a slice back to a source that wants it.
func (r *run) recycle(spent []relay.Message) {
	if r.recycler != nil && len(spent) > 0 {
		r.recycler.Recycle(spent)
	}
}

// poll returns the next chunk if one is ready.
func (r *run) poll() (chunk, bool) {
	select {
	case c, ok := <-r.ready:
		return c, ok
	default:
		return chunk{}, false
	}
}

// sort takes out of s.messages what is not to be published: what the far end has
// already, and what could not be decoded or encoded. In halt mode it ends in
// front of the latter, and says so. behind are the keys that it has parked: what
// todo has of them comes before.
func (r *run) sort(s *settlement) (todo []relay.Message, behind map[string]bool, err error) {
	batch := s.messages
	r.tail.passed(len(batch))
	if !r.needsSorting(batch) {
		return batch, nil, nil
	}
	todo, behind = make([]relay.Message, 0, len(batch)), make(map[string]bool)
	for i := range batch {
		m := &batch[i]
		switch {
		case r.tail.takeDue(m.ID):
			s.Skipped++
			r.Meter.Skipped(1)
		case r.waits(m, r.parked), r.waits(m, behind):
			r.park(m, s)
		case m.Err == nil:
			todo = append(todo, *m)
		case r.OnError == OnErrorHalt:
			s.messages = batch[:i]
			return todo, behind, r.halted(m, m.Err)
		default:
			r.bury(m, decodeClass(m), m.Err, behind, s)
		}
	}
	return todo, behind, nil
}

func (r *run) needsSorting(batch []relay.Message) bool {
	for i := range batch {
		if batch[i].Err != nil || r.tail.has(batch[i].ID) {
			return true
		}
	}
	return false
}

func decodeClass(m *relay.Message) string {
	if m.Row != nil && m.Body == nil {
		return ClassEncode
	}
	return ClassDecode
}

// deliver publishes todo in order and retries until every message is at the
// sink or a letter in s. With an error it returns those that are neither.
func (r *run) deliver(ctx context.Context, todo []relay.Message, parked map[string]bool, s *settlement) ([]relay.Message, error) {
	for len(todo) > 0 {
		n := r.fits(todo)
		if unresolved, err := r.deliverPart(ctx, todo[:n], parked, s); err != nil {
			return slices.Concat(unresolved, todo[n:]), err
		}
		if todo = todo[n:]; len(todo) == 0 {
			break
		}
		if err := r.settlePart(ctx, todo[0].ID, s); err != nil {
			return todo, err
		}
		if r.stopping.Err() != nil {
			return todo, context.Canceled // the rest is delivered after the restart
		}
	}
	return nil, nil
}

// settlePart settles what lies before message next, so that a stop does not repeat
// all of a batch that takes long. Letters stay with the rest of the batch, in whose
// buffers they lie, and so does what would be behind them; a redrive settles as a
// whole. There is no position: see sift.
func (r *run) settlePart(ctx context.Context, next string, s *settlement) error {
	at := slices.IndexFunc(s.messages, func(m relay.Message) bool { return m.ID == next })
	if at <= 0 || len(s.Letters) > 0 {
		return nil
	}
	part := settlement{Commit: s.Commit, messages: s.messages[:at]}
	s.Commit, s.messages = Commit{}, s.messages[at:]
	return r.settle(ctx, part)
}

// fits returns how many of todo the sink should be given at once.
func (r *run) fits(todo []relay.Message) int {
	bytes := 0
	for i := range todo {
		if i > 0 && (i >= r.maxBatch || bytes+todo[i].Size() > r.maxBytes) {
			return i
		}
		bytes += todo[i].Size()
	}
	return len(todo)
}

func (r *run) deliverPart(ctx context.Context, todo []relay.Message, parked map[string]bool, s *settlement) ([]relay.Message, error) {
	for {
		if todo = r.withoutParked(todo, parked, s); len(todo) == 0 {
			return nil, nil
		}
		if d := r.pace.delay(todo); d > 0 {
			if err := r.wait(ctx, d); err != nil {
				return todo, err
			}
		}
		err := r.publish(ctx, todo)
		if err == nil {
			r.publishing.over()
			r.backoff.reset()
			s.Delivered += int64(len(todo))
			return nil, nil
		}
		if ctx.Err() != nil {
			return todo, context.Cause(ctx)
		}
		before := len(todo)
		partial, isPartial := errors.AsType[*relay.BatchError](err)
		switch {
		case isPartial:
			todo, err = r.sift(ctx, todo, partial, parked, s)
		case relay.IsPermanent(err):
			return r.bisect(ctx, todo, err, parked, s)
		}
		if relay.IsFatal(err) {
			return todo, fmt.Errorf("publish: %w", err)
		}
		if len(todo) < before {
			r.backoff.reset() // some got through
		}
		if err == nil {
			continue
		}
		r.Meter.PublishFailed()
		r.publishing.begin(err)
		if err := r.wait(ctx, r.backoff.next(err)); err != nil {
			return todo, err
		}
	}
}

// wait sleeps, but not into a shutdown: a sink that fails then is not waited for.
func (r *run) wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-r.stopping.Done():
		return context.Canceled // the batch is delivered again after the restart
	case <-timer.C:
		return nil
	}
}

func bodies(batch []relay.Message) (bytes int) {
	for i := range batch {
		bytes += len(batch[i].Body)
	}
	return bytes
}

// publish is one call of the sink, if the lease allows it.
func (r *run) publish(ctx context.Context, batch []relay.Message) error {
	if !r.Trusted() {
		return relay.Fatal(ErrFenced)
	}
	began := time.Now()
	err := r.Sink.Publish(ctx, batch)
	if err != nil {
		return err
	}
	r.published(batch, bodies(batch), time.Since(began))
	return nil
}

// published counts confirmed messages, and the latency of some of them.
func (r *run) published(batch []relay.Message, bytes int, took time.Duration) {
	r.Meter.Published(len(batch), bytes, took)
	if d, ok := r.Sink.(relay.Duplicates); ok {
		if n := d.TakeDuplicates(); n > 0 {
			r.Meter.Skipped(n)
		}
	}
	for i := 0; i < len(batch); i += 1 + len(batch)/64 {
		if !batch[i].Time.IsZero() {
			r.Meter.Latency(batch[i].Time)
		}
	}
}

// sift sorts todo by what became of each message. It returns those that are
// still to be published, in order, and why they should not be at once.
func (r *run) sift(ctx context.Context, todo []relay.Message, partial *relay.BatchError, parked map[string]bool, s *settlement) (again []relay.Message, why error) {
	var confirmed []relay.Message
	halted := false
	for i := range todo {
		err, failed := partial.Failed[i]
		switch {
		case !failed:
			confirmed = append(confirmed, todo[i])
		case halted:
			again = append(again, todo[i])
		case relay.IsPermanent(err) && r.OnError == OnErrorHalt:
			again, why, halted = append(again, todo[i]), r.halted(&todo[i], err), true
		case relay.IsPermanent(err):
			r.bury(&todo[i], ClassRefused, err, parked, s)
		default:
			again = append(again, todo[i])
			if relay.IsFatal(err) || why == nil && !errors.Is(err, relay.ErrHeldBack) {
				why = err
			}
		}
	}
	if len(again) == len(todo) && why == nil {
		why = partial // all held back behind nothing: do not spin
	}
	if len(confirmed) == 0 {
		return again, why
	}
	r.published(confirmed, 0, 0)
	if len(s.messages) == 0 { // a redrive settles as a whole
		s.Delivered += int64(len(confirmed))
		return again, why
	}
	// What is through is settled now: the rest may take long. Without a position:
	// the old one still lies before everything that is unresolved.
	s.messages = without(s.messages, confirmed)
	if err := r.settle(ctx, settlement{Commit: Commit{Delivered: int64(len(confirmed))}, messages: confirmed}); err != nil {
		return again, err
	}
	return again, why
}

// bisect finds the message because of which the sink refused all of todo.
func (r *run) bisect(ctx context.Context, todo []relay.Message, refusal error, parked map[string]bool, s *settlement) ([]relay.Message, error) {
	if len(todo) == 1 {
		if r.OnError == OnErrorHalt {
			return todo, r.halted(&todo[0], refusal)
		}
		r.bury(&todo[0], ClassRefused, refusal, parked, s)
		return nil, nil
	}
	half := len(todo) / 2
	if unresolved, err := r.deliverPart(ctx, todo[:half], parked, s); err != nil {
		return slices.Concat(unresolved, todo[half:]), err
	}
	return r.deliverPart(ctx, todo[half:], parked, s)
}

func (r *run) halted(m *relay.Message, why error) error {
	return relay.Fatal(fmt.Errorf("halted in front of message %s, as on_error says: %w", m.ID, why))
}

// bury makes m a dead letter and, in park mode, its key a parked one.
func (r *run) bury(m *relay.Message, class string, why error, parked map[string]bool, s *settlement) {
	s.Letters = append(s.Letters, Letter{Message: *m, Class: class, Reason: why.Error(), Attempts: 1})
	r.Meter.DeadLettered(1)
	r.Logger.Error("message is dead-lettered", "message", m.ID, "key", m.Key, "class", class, "err", why)
	if m.Key != "" && r.OnError == OnErrorPark {
		parked[r.Ledger.Key(m.Key)] = true
	}
}

func (r *run) park(m *relay.Message, s *settlement) {
	s.Letters = append(s.Letters, Letter{Message: *m, Class: ClassParked, Reason: "waits behind a dead letter of its key"})
	r.Meter.Parked(1)
}

// waits reports whether m has to wait behind a letter of its key.
func (r *run) waits(m *relay.Message, parked map[string]bool) bool {
	return len(parked) > 0 && m.Key != "" && parked[r.Ledger.Key(m.Key)]
}

// withoutParked parks the messages of todo whose key has letters.
func (r *run) withoutParked(todo []relay.Message, parked map[string]bool, s *settlement) []relay.Message {
	if len(parked) == 0 || !slices.ContainsFunc(todo, func(m relay.Message) bool { return r.waits(&m, parked) }) {
		return todo
	}
	var rest []relay.Message
	for i := range todo {
		if r.waits(&todo[i], parked) {
			r.park(&todo[i], s)
		} else {
			rest = append(rest, todo[i])
		}
	}
	return rest
}
