package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine/steps"
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine/tail"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// maxUncommitted bounds the messages that can be at the sink and in no checkpoint,
// and so what the next owner reads back.
const maxUncommitted = 50_000

// Bounds of a batch for a sink that sets none.
const (
	maxBatch      = 4096
	maxBatchBytes = 4 << 20
)

const (
	// maxReadAhead bounds the chunks that wait for the publisher.
	maxReadAhead = 16
	// minReceive is how many messages a source may always return at once, even where the
	// sink takes fewer. What lies between them is counted in chunks. Smaller ones are less
	// work for the garbage collector, and more queries. Into webhooks 512 in place of 1000
	// took 22 s of CPU for a million messages in place of 23.
	minReceive = 256
)

// settlement is what became of a batch, on its way to a checkpoint.
type settlement struct {
	Commit
	messages []relay.Message // to be acknowledged
	spent    []relay.Message // the source's slice, to be reused; messages may lie in it
	joined   []relay.Message // the engine's slice, to be reused; messages may lie in it
	held     budget.Held     // to be released
	bufs     []*[]byte       // to be reused
	done     chan<- struct{} // closed once all of it is durable; nil if nothing waits for it
}

// publisher brings one batch at a time to the sink.
type publisher struct {
	*run
	resumer  relay.Resumer   // nil if the sink cannot be read back
	parked   map[string]bool // keys with dead letters, in the form of Ledger.Key
	tail     tail.Tail
	position string // of the sink: what was published since lies after it

	recovering int   // messages that the last owner may have delivered and not committed
	repeats    bool  // the messages in hand may be at the sink
	unexpected int64 // duplicates that should not be, since the last settlement

	step     steps.Step
	pace     pacer
	maxBatch int
	maxBytes int
	chunks   []chunk // reused by join
}

func newPublisher(r *run) *publisher {
	p := &publisher{
		run: r, parked: make(map[string]bool), tail: newTail(r.Source),
		step: r.failures.Step("publish"), pace: newPacer(r.RateMessages, r.RateBytes),
		maxBatch: maxBatch, maxBytes: int(min(r.InFlightBytes, maxBatchBytes)),
	}
	if !r.State.Clean && (r.State.Started || r.State.Checkpoint.LastID != 0 || len(r.State.Checkpoint.State) > 0) {
		p.recovering = 2 * maxUncommitted
	}
	p.resumer, _ = r.Sink.(relay.Resumer)
	if l, ok := r.Sink.(relay.Limiter); ok {
		messages, bytes := l.Limits()
		p.maxBatch, p.maxBytes = cmp.Or(messages, p.maxBatch), cmp.Or(bytes, p.maxBytes)
	}
	p.maxBatch = min(p.maxBatch, p.pace.burst())
	return p
}

// readAhead returns how many chunks may wait for the publisher: those of one batch of the
// sink. What waits behind them arrives no sooner, and each collection of garbage looks
// through it.
func (p *publisher) readAhead() int {
	size := p.Batch
	if p.Grows {
		size = growing
	}
	return min(p.maxBatch/size+1, maxReadAhead)
}

// newTail returns an empty tail for the messages of src.
func newTail(src relay.Source) tail.Tail {
	if e, ok := src.(Expecter); ok {
		return tail.New(func(id string) (bool, bool) { return e.Expects(relay.EventID(id)) }, 2*maxUncommitted)
	}
	return tail.New(nil, 2*maxUncommitted)
}

// prepare loads the parked keys, and reads back what the owner before had published
// beyond its last checkpoint.
func (p *publisher) prepare(ctx context.Context) error {
	if err := p.loadParked(ctx); err != nil || p.resumer == nil {
		return err
	}
	if p.position = p.State.Position; p.position == "" {
		return p.retry(ctx, "store the sink's position", func() error { return p.storePosition(ctx) })
	}

	var found map[string]bool
	err := p.retry(ctx, "read the far end back", func() (err error) {
		found, err = p.readBack(ctx, p.State.Clean)
		return err
	})
	if err != nil {
		return err
	}
	for id := range found {
		p.tail.Add(id)
	}
	if len(found) > 0 {
		p.Logger.Info("read the far end back", "found", len(found), "unsettled", p.tail.Open())
	}
	return nil
}

func (p *publisher) loadParked(ctx context.Context) error {
	if p.State.NoDeadLetters && len(p.parked) == 0 {
		return nil
	}
	return p.retry(ctx, "load parked keys", func() error {
		keys, err := p.Ledger.ParkedKeys(ctx)
		if err != nil {
			return err
		}
		clear(p.parked)
		for _, key := range keys {
			p.parked[key] = true
		}
		return nil
	})
}

// storePosition stores where the sink's destination ends before anything is
// published, so that even the first messages can be found again. A position without
// the checkpoint of its source has no meaning, so both are stored.
func (p *publisher) storePosition(ctx context.Context) (err error) {
	if p.position, err = p.resumer.Position(ctx); err != nil {
		return err
	}
	c := Commit{Position: p.position}
	if src, ok := p.Source.(relay.Checkpointer); ok {
		at, err := src.Checkpoint(nil)
		if err != nil {
			return err
		}
		c.Checkpoint = &at
	}
	return p.Ledger.Commit(ctx, c)
}

// readBackPause is the time between two reads that have to agree.
const readBackPause = 100 * time.Millisecond

// readBack returns the IDs at the far end beyond the last position. Messages on a lost
// connection may arrive after it was lost, so readBack reads until two reads agree. If
// the connection was closed in good order, one read that finds nothing is enough. If there
// is none, as for a file, one read is.
func (p *publisher) readBack(ctx context.Context, closed bool) (map[string]bool, error) {
	found := make(map[string]bool)
	_, immediate := p.resumer.(relay.Immediate)
	for again := closed; ; again = true {
		before := len(found)
		if err := p.resumer.Resume(ctx, p.position, func(id string) { found[id] = true }); err != nil {
			return nil, err
		}
		if immediate || again && len(found) == before {
			return found, nil
		}
		if err := backoff.Sleep(ctx, readBackPause); err != nil {
			return nil, err
		}
	}
}

// publishAll delivers chunks until the last.
func (p *publisher) publishAll(ctx context.Context) error {
	if !p.State.NoDeadLetters {
		if err := p.redriveAll(ctx); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case c, ok := <-p.ready:
			if !ok {
				return nil
			}
			if err := p.publishBatch(ctx, c); err != nil {
				return err
			}
		case <-p.redrive:
			if err := p.redriveAll(ctx); err != nil {
				return err
			}
		}
	}
}

// publishBatch delivers c and all chunks that are ready after it.
func (p *publisher) publishBatch(ctx context.Context, c chunk) error {
	d := p.newDelivery(p.parked)
	d.join(c)
	if err := d.addTombstones(ctx); err != nil {
		p.release(d.out.held)
		return err
	}
	batch := d.out.messages
	p.Meter.Delivering(oldest(batch))
	defer p.Meter.Delivering(time.Time{})

	todo, behind, err := d.partition()
	unresolved, deliverErr := d.deliver(ctx, todo)
	p.recovering = max(0, p.recovering-len(batch))
	d.out.Unexpected, p.unexpected = p.unexpected, 0
	maps.Copy(p.parked, behind)
	inOrder(d.out.DeadLetters, batch)
	d.logDeadLetters()
	if deliverErr != nil {
		err = deliverErr
	}
	if ctx.Err() != nil {
		p.release(d.out.held)
		return context.Cause(ctx)
	}

	switch {
	case err != nil:
		// The sink's position stays where it is. It has to lie before the unresolved
		// messages, so that the next owner finds those of them that arrived.
		d.out.messages = without(d.out.messages, unresolved)
	case p.resumer != nil && p.tail.Open() == 0:
		if d.out.Position, err = p.resumer.Position(ctx); err != nil {
			err = fmt.Errorf("ask for the sink's position: %w", err)
			break
		}
		p.position = cmp.Or(d.out.Position, p.position)
	}
	return errors.Join(err, p.settle(ctx, d.out))
}

// settle hands s to the committer.
func (r *run) settle(ctx context.Context, s settlement) error {
	select {
	case r.settled <- &s:
		return nil
	case <-ctx.Done():
		r.release(s.held)
		return context.Cause(ctx)
	}
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
