package engine

import (
	"context"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// chunk is what one Receive returned, ready to be published.
type chunk struct {
	messages []relay.Message
	size     int   // of the messages
	bytes    int64 // held of the limits on what is in flight
	buf      *[]byte
}

// receiveAll reads ahead until ctx ends or the source fails for good. A batch
// that finds no room when ctx ends is dropped: it was never acknowledged.
func (r *run) receiveAll(ctx context.Context) error {
	failing := outage{trouble: r.trouble, step: "receive"}
	var wait backoff
	for {
		batch, err := r.Source.Receive(ctx, r.Batch)
		switch {
		case ctx.Err() != nil:
			return nil
		case relay.IsFatal(err):
			return err
		case err != nil:
			r.Meter.SourceFailed()
			failing.begin(err)
			if sleep(ctx, wait.next(err)) != nil {
				return nil
			}
			continue
		}
		wait.reset()
		failing.over()
		if len(batch) == 0 {
			continue
		}
		c, err := r.take(ctx, batch)
		if err != nil {
			return nil
		}
		if !r.pass(ctx, r.received, c) {
			return nil
		}
	}
}

// pass hands c on, or gives its room back when ctx ends first.
func (r *run) pass(ctx context.Context, to chan<- chunk, c chunk) bool {
	select {
	case to <- c:
		return true
	case <-ctx.Done():
		r.release(c.bytes)
		return false
	}
}

// overhead is the bytes that a message takes beside its own: a struct of about 300,
// in the source's slice and in the one of a joined batch.
const overhead = 600

// take waits until there is room for batch and for what will be made of it.
func (r *run) take(ctx context.Context, batch []relay.Message) (chunk, error) {
	size := 0
	for i := range batch {
		size += batch[i].Size() + len(batch[i].Row)
	}
	r.Meter.Received(len(batch), size)
	c := chunk{messages: batch, size: size, bytes: min(int64(size+overhead*len(batch)), r.InFlightBytes)}
	if err := r.local.Acquire(ctx, c.bytes); err != nil {
		return c, err
	}
	if err := r.share.acquire(ctx, c.bytes); err != nil {
		r.local.Release(c.bytes)
		return c, err
	}
	r.Meter.InFlight(c.bytes)
	return c, nil
}

// transformAll encodes or decodes what was received, so that the source can read
// on meanwhile.
func (r *run) transformAll(ctx context.Context) {
	for c := range r.received {
		c.buf = r.buffers.Get().(*[]byte)
		*c.buf = r.transform(c.messages, (*c.buf)[:0])
		if !r.pass(ctx, r.ready, c) {
			break
		}
	}
	for c := range r.received {
		r.release(c.bytes)
	}
}

// transform is for one goroutine at a time: the publisher's redrives are encoded
// beside what is being received.
func (r *run) transform(batch []relay.Message, buf []byte) []byte {
	r.encoding.Lock()
	defer r.encoding.Unlock()
	return r.Transform(batch, buf)
}

// release gives back what a chunk held of the limits.
func (r *run) release(bytes int64) {
	if bytes == 0 {
		return
	}
	r.local.Release(bytes)
	r.share.release(bytes)
	r.Meter.InFlight(-bytes)
}
