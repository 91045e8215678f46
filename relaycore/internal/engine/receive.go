package engine

import (
	"context"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// chunk is a batch that one Receive returned, on its way to the publisher.
type chunk struct {
	messages []relay.Message
	size     int     // of the messages
	bytes    held    // reserved
	buf      *[]byte // into which the messages were encoded
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
			r.releaseLarge(large)
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
		if len(batch) == 0 {
			continue
		}

		c, err := r.reserve(ctx, batch, large)
		if err != nil || !r.forward(ctx, c) {
			return nil
		}
	}
}

// smallChunk is the size in bytes up to which waking the transformer costs more than its
// work.
const smallChunk = 16 << 10

// forward passes c on to the transformer. A small chunk is transformed here, if none is
// before it.
func (r *run) forward(ctx context.Context, c chunk) bool {
	if c.size <= smallChunk && r.transforming.Load() == 0 {
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
		r.release(c.bytes)
		return false
	}
}

// reserveLarge reserves the memory for what the source asks for; 0 for a usual message.
func (r *run) reserveLarge(ctx context.Context) (int64, error) {
	var n int64
	if asker, ok := r.Source.(Asker); ok {
		n = asker.Wants() * int64(r.Copies)
	}
	if n == 0 {
		return 0, nil
	}
	r.asks.Store(1)
	defer r.asks.Store(0)
	if err := r.Budget.AcquireLarge(ctx, n); err != nil {
		return 0, err
	}
	r.large.Add(n)
	return n, nil
}

func (r *run) releaseLarge(n int64) {
	r.large.Add(-n)
	r.Budget.ReleaseLarge(n)
}

// held is what a chunk has reserved, in bytes.
type held struct {
	usual int64 // within the limits on what is in flight
	large int64 // for a large message
}

func (h held) plus(more held) held { return held{h.usual + more.usual, h.large + more.large} }

// reserve waits until batch, and what will be encoded from it, is within the limits
// on what is in flight. It counts the overhead of a message twice: the garbage
// collector lets the heap grow before it collects what was delivered.
// large is reserved already, for the rows of batch.
func (r *run) reserve(ctx context.Context, batch []relay.Message, large int64) (chunk, error) {
	size := 0
	for i := range batch {
		size += batch[i].Size() + len(batch[i].Row)
	}
	r.Meter.Received(len(batch), size)

	bytes := int64(size + relay.MessageOverhead*len(batch))
	if large > 0 {
		bytes = int64(2 * relay.MessageOverhead * len(batch))
	}
	bytes = min(bytes, r.InFlightBytes)
	c := chunk{messages: batch, size: size, bytes: held{bytes, large}}
	if err := r.local.Acquire(ctx, bytes); err != nil {
		r.releaseLarge(large)
		return c, err
	}
	if err := r.share.Acquire(ctx, bytes); err != nil {
		r.local.Release(bytes)
		r.releaseLarge(large)
		return c, err
	}
	r.Meter.InFlight(bytes + large)
	return c, nil
}

// release gives back what reserve took.
func (r *run) release(h held) {
	if h == (held{}) {
		return
	}
	r.local.Release(h.usual)
	r.share.Release(h.usual)
	r.releaseLarge(h.large)
	r.Meter.InFlight(-h.usual - h.large)
}

// transformAll encodes or decodes what was received, while the source reads on.
func (r *run) transformAll(ctx context.Context) {
	for c := range r.received {
		r.hand(ctx, r.ready, r.transformed(c)) // once ctx has ended, both sides release what is left
		r.transforming.Add(-1)
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
