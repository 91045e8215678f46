package engine_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// slow takes ten messages at a time, and a second for them.
type slow struct{ *script }

func (slow) Limits() (messages, bytes int) { return 10, 0 }

func (s slow) Publish(ctx context.Context, batch []relay.Message) error {
	time.Sleep(time.Second)
	return s.script.Publish(ctx, batch)
}

// A stop waits for the part of a batch that the sink has in its hand, and forgets none
// that came before.
func TestStopInsideABatchRepeatsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(100, 10)
		b.cfg.Sink = slow{b.sink}
		b.start()
		time.Sleep(3500 * time.Millisecond)
		began := time.Now()
		b.finish(t)
		if took := time.Since(began); took > time.Second {
			t.Errorf("stopping took %s", took)
		}
		want(t, "arrived", b.arrived(), numbers(1, 40))
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, int64(40))
	})
}

// A crash repeats no more than the part that was in the sink's hand.
func TestCrashInsideABatchRepeatsAPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(100, 10)
		b.cfg.Sink = slow{b.sink}
		b.start()
		time.Sleep(3500 * time.Millisecond)
		b.ledger.fence(true)
		b.kill()
		<-b.result
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, int64(30))
	})
}

// What a limit makes a batch wait for can be long: one of bytes does not split it.
func TestStopDoesNotWaitForTheRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(1000, 10)
		b.cfg.RateBytes, b.cfg.Batch = 10, 10
		b.start()
		time.Sleep(time.Second)
		began := time.Now()
		b.finish(t)
		if took := time.Since(began); took > time.Second {
			t.Errorf("stopping took %s", took)
		}
		n := len(b.arrived())
		if n == 0 || n == 1000 {
			t.Errorf("%d of 1000 messages in a second at 10 bytes a second", n)
		}
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, int64(n))
	})
}
