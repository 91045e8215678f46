package engine

import (
	"context"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// chunk is a batch that one Receive returned, on its way to the publisher.
type chunk struct {
	messages []relay.Message
	size     int // of the messages
	held     budget.Held
	buf      *[]byte         // into which the messages were encoded
	spent    []relay.Message // the source's slice, to be reused; nil for a part of it
}

// receiveAll reads ahead until ctx ends or the source fails for good. A batch that
// is still waiting for memory when ctx ends is dropped: it was never acknowledged.
func (r *run) receiveAll(ctx context.Context) error {
	receiving := r.failures.Step("receive")
	for {
		large, err := r.reserveLarge(ctx)
		if err != nil {
			return nil
		}
		batch, err := r.Source.Receive(ctx, r.Batch)
		if len(batch) == 0 || err != nil {
			r.share.Release(large)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case relay.IsFatal(err):
			return err
		case err != nil:
			r.Meter.SourceFailed()
			if backoff.Sleep(ctx, receiving.Failed(err)) != nil {
				return nil
			}
			continue
		}
		receiving.Recovered()
		if len(batch) > 0 && !r.pass(ctx, batch, large) {
			return nil
		}
	}
}

// pass hands a batch on once there is memory for it. It returns false if ctx ends first.
func (r *run) pass(ctx context.Context, batch []relay.Message, large budget.Held) bool {
	c, err := r.reserve(ctx, batch, large)
	return err == nil && r.forward(ctx, c)
}

// smallChunk is the size in bytes up to which waking the transformer costs more than its
// work.
const smallChunk = 16 << 10

// forward passes c on to the transformer. A small chunk is transformed here, if none is
// before it.
func (r *run) forward(ctx context.Context, c chunk) bool {
	r.start()
	if c.size <= smallChunk && !r.Grows && r.transforming.Load() == 0 {
		return r.hand(ctx, r.ready, r.transformed(c))
	}
	r.transforming.Add(1)
	return r.hand(ctx, r.received, c)
}

// hand passes c on, or releases its memory if ctx ends first.
func (r *run) hand(ctx context.Context, to chan<- chunk, c chunk) bool {
	select {
	case to <- c:
		return true
	case <-ctx.Done():
		r.release(c.held)
		return false
	}
}

// reserveLarge reserves the memory for what the source asks for; none for a usual message.
func (r *run) reserveLarge(ctx context.Context) (budget.Held, error) {
	asker, ok := r.Source.(Asker)
	if !ok {
		return budget.Held{}, nil
	}
	return r.share.AcquireLarge(ctx, asker.Wants()*int64(r.Copies))
}

// reserve waits until batch, and what will be encoded from it, is within the limits
// on what is in flight. It counts the overhead of a message twice: the garbage
// collector lets the heap grow before it collects what was delivered.
// large is reserved already, for the rows of batch.
func (r *run) reserve(ctx context.Context, batch []relay.Message, large budget.Held) (chunk, error) {
	size, rows := sizeOf(batch)
	size += rows // which the bodies are about as long as
	r.Meter.Received(len(batch), size)

	bytes := int64(size + relay.MessageOverhead*len(batch))
	if large.Large > 0 {
		bytes = int64(2 * relay.MessageOverhead * len(batch))
	}
	usual, err := r.share.Acquire(ctx, bytes)
	c := chunk{messages: batch, spent: batch, size: size, held: usual.Plus(large)}
	if err != nil {
		r.share.Release(large)
		return c, err
	}
	r.Meter.InFlight(c.held.Bytes())
	return c, nil
}

// sizeOf returns the bytes of batch, and those of its rows.
func sizeOf(batch []relay.Message) (size, rows int) {
	for i := range batch {
		size += batch[i].Size()
		rows += len(batch[i].Row)
	}
	return size, rows
}

// release gives back what reserve took.
func (r *run) release(h budget.Held) {
	r.share.Release(h)
	r.Meter.InFlight(-h.Bytes())
}

// transformAll encodes or decodes what was received, while the source reads on.
func (r *run) transformAll(ctx context.Context) {
	for c := range r.received {
		if r.Grows {
			r.transformGrowing(ctx, c)
		} else {
			r.hand(ctx, r.ready, r.transformed(c)) // once ctx has ended, both sides release what is left
		}
		r.transforming.Add(-1)
	}
}

// growing is how many messages that may grow are transformed at once.
const growing = 64

// transformGrowing passes c on in parts. Each waits until what it has grown by is within
// the limits. The parts before it wait for nothing that is behind them, so they are
// delivered, and make room.
func (r *run) transformGrowing(ctx context.Context, c chunk) {
	for rest := c.messages; len(rest) > 0; {
		n := min(len(rest), growing)
		part := chunk{messages: rest[:n]}
		rest = rest[n:]
		size, rows := sizeOf(part.messages)
		part = r.transformed(part)
		part.size, _ = sizeOf(part.messages)
		grown, err := r.share.AcquireGrown(ctx, int64(max(0, part.size-size-rows)))
		if err != nil {
			r.release(c.held)
			return
		}
		r.Meter.InFlight(grown.Bytes())
		part.held = grown
		if len(rest) == 0 {
			part.held, c.held = grown.Plus(c.held), budget.Held{}
		}
		if !r.hand(ctx, r.ready, part) {
			r.release(c.held)
			return
		}
	}
}

func (r *run) transformed(c chunk) chunk {
	c.buf = r.buffers.Get().(*[]byte)
	*c.buf = r.transform(c.messages, (*c.buf)[:0])
	return c
}

// transform runs Transform for one goroutine at a time: the publisher encodes dead
// letters that it redrives while new messages are received.
func (r *run) transform(batch []relay.Message, buf []byte) []byte {
	r.encoding.Lock()
	defer r.encoding.Unlock()
	return r.Transform(batch, buf)
}
