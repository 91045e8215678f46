package engine

import (
	"context"
	"math"
	"time"
)

// pacer holds a pipeline to so many messages and bytes a second. It lets a batch
// pass and makes the next one wait until the first is paid for, so no batch is
// ever too large for it.
type pacer struct {
	messages, bytes float64 // a second; 0 means no limit
	free            time.Time
}

func newPacer(messages, bytes float64) pacer { return pacer{messages: messages, bytes: bytes} }

// burst returns the most messages that should pass at once: a tenth of a
// second's worth.
func (p *pacer) burst() int {
	if p.messages <= 0 {
		return math.MaxInt
	}
	return max(1, int(p.messages/10))
}

// wait returns when a batch of so many messages and bytes may pass.
func (p *pacer) wait(ctx context.Context, messages, bytes int) error {
	if p.messages <= 0 && p.bytes <= 0 {
		return nil
	}
	now := time.Now()
	if delay := p.free.Sub(now); delay > 0 {
		if err := sleep(ctx, delay); err != nil {
			return err
		}
		now = p.free
	}
	var seconds float64
	if p.messages > 0 {
		seconds = float64(messages) / p.messages
	}
	if p.bytes > 0 {
		seconds = max(seconds, float64(bytes)/p.bytes)
	}
	p.free = now.Add(time.Duration(seconds * float64(time.Second)))
	return nil
}
