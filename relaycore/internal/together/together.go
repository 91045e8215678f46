// Package together asks a question once for all callers that want the answer at a time. A
// thousand pipelines that are opened at once ask the server the same things of one outbox.
package together

import (
	"context"
	"errors"
	"sync"
	"time"
)

// keep is how long an answer is kept for callers that it is recent enough for.
const keep = time.Second

// errPanic is the error of a call that did not return.
var errPanic = errors.New("panic")

// Group has the last answer to each question. The zero Group has none.
type Group[Q comparable, T any] struct {
	mu    sync.Mutex
	last  map[Q]*call[T]
	swept time.Time
}

type call[T any] struct {
	began  time.Time
	done   chan struct{} // closed when answer and err are set
	answer T
	err    error
}

// Do returns an answer of ask that began at or after since. It is the last one, or that of
// another caller, if it began late enough, and else one of its own. The callers that
// wait while another one asks too early get the next answer together. So an answer is
// never older than one that the caller would have asked for at since.
//
// All callers get the same value, which none may change. An error is that of the caller that
// asked: its connection may be broken, or its context may have ended. The callers that waited
// for it then ask, each for itself.
func (g *Group[Q, T]) Do(ctx context.Context, question Q, since time.Time, ask func(ctx context.Context) (T, error)) (T, error) {
	for {
		c, own := g.call(question, since)
		if own {
			defer close(c.done)
			c.err = errPanic
			c.answer, c.err = ask(ctx)
			return c.answer, c.err
		}
		select {
		case <-c.done:
		case <-ctx.Done():
			var none T
			return none, context.Cause(ctx)
		}
		switch {
		case c.err != nil:
			return ask(ctx)
		case !c.began.Before(since):
			return c.answer, nil
		}
	}
}

// call returns the call to wait for, or a new one that the caller must answer.
func (g *Group[Q, T]) call(question Q, since time.Time) (c *call[T], own bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if c = g.last[question]; c != nil {
		select {
		case <-c.done:
			if c.err == nil && !c.began.Before(since) {
				return c, false
			}
		default:
			return c, false
		}
	}
	if now.Sub(g.swept) > keep {
		g.sweep(now)
	}
	if g.last == nil {
		g.last = make(map[Q]*call[T])
	}
	c = &call[T]{began: now, done: make(chan struct{})}
	g.last[question] = c
	return c, true
}

// sweep forgets old answers.
func (g *Group[Q, T]) sweep(now time.Time) {
	g.swept = now
	for question, c := range g.last {
		select {
		case <-c.done:
			if now.Sub(c.began) > keep {
				delete(g.last, question)
			}
		default:
		}
	}
}
