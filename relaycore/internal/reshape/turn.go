package reshape

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"
)

// slowEvaluation admits one evaluation of the process that has run for longer than
// slowAfter. It is of the process, because all pipelines share its processors.
var slowEvaluation = semaphore.NewWeighted(1)

// turn is the context of one evaluation. The interpreter asks it for Done before each
// instruction, in the goroutine that evaluates. So Done can let an evaluation wait.
type turn struct {
	context.Context //nolint:containedctx // it is a context
	ran             time.Duration
	last            time.Time // when ran was counted
	steps           int
	slow            bool
	done            chan struct{}
	err             error
}

func newTurn() *turn {
	return &turn{Context: context.Background(), last: time.Now(), done: make(chan struct{})}
}

const (
	// stepsBetween is how many instructions run between two looks at the clock.
	stepsBetween = 16
	// maxCounted is how much of the time between two looks counts at most. A process that
	// waits for a processor, or was suspended, must not make a dead letter of a message.
	maxCounted = 20 * time.Millisecond
	// slowAfter is how long an evaluation runs before it waits for other slow ones.
	slowAfter = 10 * time.Millisecond
)

// Done returns a channel that is closed once the evaluation has had its time.
func (t *turn) Done() <-chan struct{} {
	if t.steps++; t.steps%stepsBetween == 0 && t.err == nil {
		t.look()
	}
	return t.done
}

// Err is not nil once the evaluation has had its time.
func (t *turn) Err() error { return t.err }

func (t *turn) look() {
	now := time.Now()
	t.ran += min(now.Sub(t.last), maxCounted)
	t.last = now
	switch {
	case t.ran > maxEvaluation:
		t.err = errTooLong
		close(t.done)
	case t.ran > slowAfter && !t.slow:
		_ = slowEvaluation.Acquire(context.Background(), 1) // each holds it for little longer than maxEvaluation
		t.slow, t.last = true, time.Now()
	}
}

func (t *turn) end() {
	if t.slow {
		slowEvaluation.Release(1)
	}
}
