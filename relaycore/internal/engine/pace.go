package engine

import (
	"math"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// pacer limits the messages and bytes of a pipeline a second. A batch passes at once, and
// the next one waits until the rate allows it. So a batch of any size can pass.
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

// delay returns how long batch has to wait, and assumes that it is sent then.
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
