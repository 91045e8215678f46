package engine

import (
	"math"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// pacer holds a pipeline to so many messages and bytes a second. It lets a batch
// pass, and the next one waits for the time that the first one costs. So no batch is
// too large.
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

// delay returns how long batch has to wait, and counts on its passing then.
func (p *pacer) delay(batch []relay.Message) time.Duration {
	if p.messages <= 0 && p.bytes <= 0 {
		return 0
	}
	now := time.Now()
	start := now
	if p.free.After(now) {
		start = p.free
	}
	var seconds float64
	if p.messages > 0 {
		seconds = float64(len(batch)) / p.messages
	}
	if p.bytes > 0 {
		seconds = max(seconds, float64(bodies(batch))/p.bytes)
	}
	p.free = start.Add(time.Duration(seconds * float64(time.Second)))
	return start.Sub(now)
}
