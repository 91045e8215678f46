package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// limitedLedger ends the run of a pipeline that has as many dead letters and parked
// messages as it may have. The last batch is stored whole, so there can be more.
type limitedLedger struct {
	*store.Ledger
	limit int64
	held  atomic.Int64 // at least as many as are stored; some may have been discarded
}

// limitLedger returns an error if the pipeline is at its limit, unless some of what it
// has is to be delivered again. With none it has none, and nothing is counted.
func limitLedger(ctx context.Context, l *store.Ledger, limit int64, none bool) (*limitedLedger, error) {
	if none {
		return &limitedLedger{Ledger: l, limit: limit}, nil
	}
	n, retried, err := l.Held(ctx, limit)
	if err != nil {
		return nil, err
	}
	if n >= limit && !retried {
		return nil, tooManyDeadLetters(limit)
	}
	limited := &limitedLedger{Ledger: l, limit: limit}
	limited.held.Store(n)
	return limited, nil
}

// Commit implements [engine.Ledger]. What it has committed is durable even if it returns
// the error of a pipeline that is at its limit.
func (l *limitedLedger) Commit(ctx context.Context, c engine.Commit) error {
	if err := l.Ledger.Commit(ctx, c); err != nil {
		return err
	}
	if held := l.held.Add(int64(len(c.DeadLetters) - len(c.Redriven))); held < l.limit || len(c.DeadLetters) == 0 {
		return nil
	}
	n, _, err := l.Held(ctx, l.limit)
	if err != nil {
		return nil // the next commit with a dead letter counts again
	}
	l.held.Store(n)
	if n >= l.limit {
		return tooManyDeadLetters(l.limit)
	}
	return nil
}

func tooManyDeadLetters(limit int64) error {
	return relay.Fatal(fmt.Errorf("%d dead letters and parked messages are stored, as many as max_dead_letters allows: "+
		"correct the cause (dlq summary shows it), and retry or discard them, or raise max_dead_letters", limit))
}

// maxExpiry bounds the pause between two looks for dead letters that have expired.
const maxExpiry = time.Minute

// expiry deletes dead letters for their age.
type expiry struct {
	ledger  *store.Ledger
	age     time.Duration // 0: they are kept
	log     *slog.Logger
	count   func(messages int)
	redrive func()
}

// run looks again and again until ctx ends.
func (e *expiry) run(ctx context.Context) {
	for {
		e.expire(ctx)
		if backoff.Sleep(ctx, min(e.age, maxExpiry)) != nil {
			return
		}
	}
}

func (e *expiry) expire(ctx context.Context) {
	expired, err := e.ledger.Expire(ctx, e.age)
	if err != nil && ctx.Err() == nil {
		e.log.Warn("dead letters are not expired", "err", err)
	}
	for _, d := range expired {
		e.log.Warn("dead letter expired", "message_id", d.MessageID, "key", d.Key, "class", d.Class, "outbox_id", d.OutboxID,
			"created_at", d.Created)
	}
	if len(expired) > 0 {
		e.count(len(expired))
		e.redrive()
	}
}
