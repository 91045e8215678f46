package engine

import (
	"context"
	"errors"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine/steps"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// commitAll makes settlements durable until the last, even if ctx ends meanwhile:
// delivered messages should not be delivered again.
func (r *run) commitAll(ctx context.Context) error {
	c := committer{run: r}
	c.checkpointer, _ = r.Source.(relay.Checkpointer)
	var moved <-chan struct{}
	if m, ok := r.Source.(Mover); ok {
		moved = m.Moved()
	}
	redrive := r.redrive // until the publisher is there to receive from it
	var last time.Time
	quiet := time.NewTimer(0)
	defer quiet.Stop()
	for {
		if c.sum.counts() { // kept by commit; perhaps no more messages come
			quiet.Reset(countEvery)
		} else {
			quiet.Stop()
		}
		select {
		case <-quiet.C:
		case s, ok := <-r.settled:
			if !ok {
				return c.commit(ctx, false)
			}
			c.add(s)
		case <-moved:
			c.checkpoint(nil)
		case <-redrive:
			r.start()
			redrive = nil
			notify(r.redrive) // it was for the publisher
		}
		open := c.addReady()
		for open && !c.due(last) {
			open = c.addUntil(last.Add(r.CommitEvery))
		}
		if err := c.commit(ctx, open); err != nil {
			return err
		}
		last = time.Now()
		if !open {
			return nil
		}
	}
}

// committer joins settlements into one commit.
type committer struct {
	*run
	checkpointer relay.Checkpointer // nil for a broker

	sum     settlement
	counted time.Time // when a broker's counts were last stored
	waiting []chan<- struct{}
	err     error
}

// add adds s to the sum. A checkpoint is computed at once. After that only dead
// letters need the memory of the messages.
func (c *committer) add(s *settlement) {
	c.sum.Delivered += s.Delivered
	c.sum.Skipped += s.Skipped
	c.sum.Unexpected += s.Unexpected
	c.sum.Filtered += s.Filtered
	c.sum.DeadLetters = append(c.sum.DeadLetters, s.DeadLetters...)
	c.sum.Redriven = append(c.sum.Redriven, s.Redriven...)
	if s.Position != "" {
		c.sum.Position = s.Position
	}
	if c.checkpointer != nil && len(s.DeadLetters) == 0 {
		defer c.free(s)
	} else {
		c.sum.held = c.sum.held.Plus(s.held)
		c.sum.bufs = append(c.sum.bufs, s.bufs...)
	}
	if s.done != nil {
		c.waiting = append(c.waiting, s.done)
	}
	switch settled := whole(s.messages); {
	case len(settled) == 0:
	case c.checkpointer == nil:
		c.sum.messages = append(c.sum.messages, settled...)
	default:
		c.checkpoint(settled)
	}
	if c.checkpointer != nil {
		c.recycle(s.spent) // dead letters are copies
	}
	if s.joined != nil {
		c.giveBack(s.joined)
	}
}

// free releases the memory of s, and its buffers.
func (c *committer) free(s *settlement) {
	c.release(s.held)
	if s.held.Large > 0 {
		return // a buffer that holds a large message is not kept
	}
	for _, buf := range s.bufs {
		c.buffers.Put(buf)
	}
}

func (c *committer) checkpoint(batch []relay.Message) {
	at, err := c.checkpointer.Checkpoint(batch)
	if err != nil {
		c.err = err
		return
	}
	c.sum.Checkpoint = &at
}

// addReady adds the settlements that are there, and reports whether more can come.
func (c *committer) addReady() bool {
	for {
		select {
		case s, ok := <-c.settled:
			if !ok {
				return false
			}
			c.add(s)
		default:
			return true
		}
	}
}

func (c *committer) addUntil(deadline time.Time) bool {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case s, ok := <-c.settled:
		if ok {
			c.add(s)
		}
		return ok
	case <-timer.C:
		return true
	}
}

// due reports whether the commit should wait no longer for more settlements. A
// broker's acknowledgements do not wait at all, as the broker may wait for them.
func (c *committer) due(last time.Time) bool {
	return c.checkpointer == nil || c.err != nil || len(c.waiting) > 0 || len(c.sum.DeadLetters) > 0 ||
		c.sum.Delivered > maxUncommitted/2 || time.Since(last) >= c.CommitEvery
}

// commit writes the sum to the ledger and then acknowledges it to the source.
func (c *committer) commit(ctx context.Context, open bool) error {
	keep := Commit{}
	defer func() {
		c.free(&c.sum)
		clear(c.sum.messages)
		c.sum = settlement{messages: c.sum.messages[:0], Commit: keep}
		c.waiting = c.waiting[:0]
	}()
	if c.err != nil {
		return c.err
	}
	began := time.Now()
	// A cancelled context does not stop the commit of delivered messages, and a
	// database that is away does not hold up a shutdown for long.
	writing, cancel := backoff.Outlive(ctx, commitGrace)
	defer cancel()
	switch {
	case !c.essential() && !c.sum.counts():
	case !c.essential() && open && time.Since(c.counted) < countEvery:
		keep = c.sum.Commit // it is nothing but counts
	default:
		c.counted = time.Now()
		if err := c.retry(writing, "commit checkpoint", func() error { return c.Ledger.Commit(writing, c.sum.Commit) }); err != nil {
			return err
		}
	}
	switch {
	case c.sum.Checkpoint != nil:
		if err := c.checkpointer.Committed(writing, *c.sum.Checkpoint); err != nil {
			c.Logger.Warn("clean up behind the checkpoint", "err", err)
		}
	case len(c.sum.messages) > 0:
		if err := c.ack(writing, c.sum.messages); err != nil {
			return err
		}
	}
	c.Meter.Committed(time.Since(began))
	for _, done := range c.waiting {
		close(done)
	}
	return nil
}

// counts reports whether messages are counted in c.
func (c *Commit) counts() bool { return c.Delivered+c.Skipped+c.Filtered > 0 }

// countEvery is how often a broker's counts are stored, when they are all that
// there is to store.
const countEvery = time.Second

// essential reports whether the sum holds more than counts.
func (c *committer) essential() bool {
	return c.sum.Checkpoint != nil || c.sum.Position != "" || len(c.sum.DeadLetters) > 0 || len(c.sum.Redriven) > 0
}

// commitGrace is how long a commit may go on after a cancellation.
const commitGrace = 2 * time.Second

// maxAckTries bounds the tries to acknowledge one batch.
const maxAckTries = 5

func (c *committer) ack(ctx context.Context, batch []relay.Message) error {
	var wait backoff.Backoff
	for try := 1; ; try++ {
		err := c.Source.Ack(ctx, batch)
		switch {
		case err == nil:
			return nil
		case relay.IsFatal(err):
			return err
		}
		c.Meter.SourceFailed()
		if try == maxAckTries || errors.Is(err, context.Canceled) {
			// The broker delivers them again, and the inbox drops them.
			c.Logger.Warn("delivered messages are not acknowledged", "messages", len(batch), "tries", try, "err", err)
			return nil
		}
		if err := backoff.Sleep(ctx, steps.Delay(&wait, err)); err != nil {
			return nil
		}
	}
}
