package outbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/backfill"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// consumeEvery is the shortest time between two calls of outbox_rows_consumed.
const consumeEvery = 5 * time.Second

// consumer gives up rows of claim checks. Only the goroutine of Committed uses it,
// apart from the reminder.
type consumer struct {
	upTo   int64 // rows up to this id are given up
	at     time.Time
	unable bool  // there is no function for it, or it is denied
	shared bool  // that other outboxes use the delta table was logged
	served int64 // requested snapshots up to this id are finished

	mu       sync.Mutex
	reminder *time.Timer // nil until it is needed
	closed   bool
}

// Committed implements [relay.Checkpointer]. It finishes requested snapshots, removes stored
// changes, and reports to the extension which claim-check rows no reader needs any longer.
// All readers share them, so the slowest one decides.
func (s *Source) Committed(ctx context.Context, c relay.Checkpoint) error {
	if err := s.removeChanges(ctx, c); err != nil {
		return err
	}
	u, v := &s.consumer, s.shared.view()
	if served := v.tracker.Served(); served > u.served {
		if err := backfill.Finish(ctx, s.pool, s.cfg.Pipeline, served, v.refused); err != nil {
			return err
		}
		u.served = served
	}
	if c.LastID < u.upTo {
		u.upTo = 0 // the ids have restarted
	}
	if u.unable || s.shared.claimed.Load() <= u.upTo || c.LastID <= u.upTo {
		return nil
	}
	if pause := consumeEvery - time.Since(u.at); pause > 0 {
		u.remind(pause, s.moved.Notify)
		return nil
	}
	u.at = time.Now()
	if err := s.consume(ctx, c.LastID); err != nil {
		u.remind(consumeEvery, s.moved.Notify)
		return err
	}
	return nil
}

// consume gives up claim-check rows up to lastID, or up to the slowest reader.
func (s *Source) consume(ctx context.Context, lastID int64) error {
	u, t := &s.consumer, s.shared.view().table
	// The configured name may have come to mean several outboxes. The table's does not.
	_, readers, err := table.Readers(ctx, s.pool, t.Qualified())
	if err != nil {
		return fmt.Errorf("find the slowest reader of %s: %w", t.Qualified(), err)
	}
	upTo := lastID
	for _, r := range readers {
		if r.Name == s.cfg.Pipeline && r.Group == s.cfg.Group {
			continue // its cursor may be older than the checkpoint
		}
		upTo = min(upTo, r.LastID)
	}
	if upTo, err = s.sharedUpTo(ctx, t, upTo); err != nil || upTo <= u.upTo {
		return err
	}
	if t.Delta.Name != "" {
		var any bool
		err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+t.Delta.Name+` WHERE outbox_id <= $1::bigint)`, upTo).Scan(&any)
		if err == nil && !any {
			u.upTo = upTo
			return nil
		}
	}
	_, err = s.pool.Exec(ctx, `SELECT pgtrickle.outbox_rows_consumed($1, $2)`, t.ConsumedName(), upTo)
	if pg.IsMissing(err) || pg.IsDenied(err) {
		u.unable = true
		s.cfg.Logger.Warn("claim-check rows cannot be consumed", "err", err,
			"cure", "SELECT pgtrickle.relay_grant_access(), as the role that ran migrate, grants what is missing or returns the statements")
		return nil
	}
	if err != nil {
		return fmt.Errorf("consume claim-check rows of %s up to %d: %w", t.Qualified(), upTo, err)
	}
	u.upTo = upTo
	return nil
}

// sharedUpTo lowers upTo to the slowest reader of the outboxes that share the delta table
// of t. The extension gives up the rows of all of them. Without a reader none may go.
func (s *Source) sharedUpTo(ctx context.Context, t *table.Table, upTo int64) (int64, error) {
	sharing, err := table.Sharing(ctx, s.pool, t)
	if err != nil {
		return 0, err
	}
	for _, other := range sharing {
		_, readers, err := table.Readers(ctx, s.pool, other)
		if err != nil {
			return 0, fmt.Errorf("find the slowest reader of %s: %w", other, err)
		}
		if len(readers) == 0 {
			upTo = 0
		}
		for _, r := range readers {
			upTo = min(upTo, r.LastID)
		}
		if !s.consumer.shared {
			s.consumer.shared = true
			s.cfg.Logger.Warn("delta table is shared", "delta_table", t.Delta.Name, "with", other,
				"effect", "claim-check rows are given up when both outboxes are delivered")
		}
	}
	return upTo, nil
}

// remind calls notify after a pause, so that Committed is called again even if the
// outbox has become idle.
func (u *consumer) remind(pause time.Duration, notify func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.closed:
	case u.reminder == nil:
		u.reminder = time.AfterFunc(pause, notify)
	default:
		u.reminder.Reset(pause)
	}
}

func (u *consumer) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	if u.reminder != nil {
		u.reminder.Stop()
	}
}
