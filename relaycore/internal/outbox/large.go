package outbox

import (
	"context"
	"fmt"
	"strconv"

	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/stream"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// unasked is the length in bytes of a payload that is read without being asked for.
const unasked = 1 << 20

// readLarge reads the payload of a large row. The first call reads one that is small
// enough to be held unasked, makes a stream of it, or finds its length. The next call reads
// it.
func (r *reader) readLarge(ctx context.Context, db scan.DB) error {
	row := r.large
	payload, length, err := stream.Payload(ctx, db, r.table, row.ID, max(r.wants, unasked))
	if err != nil {
		return fmt.Errorf("row %d: %w", row.ID, err)
	}
	var unread rows.Event
	tooLarge := r.cfg.tooLarge(length, "row %d of %s", row.ID, r.table)
	if length >= 0 && payload == nil && r.wants == 0 && (tooLarge != nil || r.cfg.streams && length > stream.Above) {
		if unread, err = r.cfg.outline(ctx, r.conns, db, r.table, row.ID, length); err != nil {
			return fmt.Errorf("row %d: %w", row.ID, err)
		}
	}
	if length < 0 {
		tooLarge = fmt.Errorf("row %d of %s was deleted before its payload was read", row.ID, r.table)
	}
	switch {
	case tooLarge != nil, unread.Stream != nil:
		r.builder.AddUnread(row, unread, tooLarge)
	case payload == nil:
		r.wants = length
		return nil
	default:
		r.builder.AddLarge(row, payload)
	}
	r.large, r.wants = nil, 0
	r.pass(true)
	return nil
}

// tooLarge returns an [budget.TooLargeError] if a row of length bytes is larger than a row
// may be. The row is named by format and args.
func (c *Config) tooLarge(length int64, format string, args ...any) error {
	if c.MaxRow <= 0 || length <= c.MaxRow {
		return nil
	}
	return budget.TooLargeForMemory(fmt.Sprintf(format, args...), length, c.MaxRow)
}

// Refetch implements engine.Refetcher.
func (s *Source) Refetch(ctx context.Context, outboxID int64, hold func(bytes int64) error) ([]relay.Message, error) {
	c, db, err := pool{s.pool}.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Release()
	v := s.shared.view()
	t, layout := v.table, rows.NewLayout(v.table)
	b := rows.NewBuilder(t, layout, v.ids, nil, nil)
	found := false
	sql := `SELECT ` + layout.Columns() + ` FROM ` + t.Qualified() + ` WHERE ` + t.ID() + ` = $1::bigint LIMIT 1`
	err = db.Query(ctx, sql, layout.Formats(0), []string{strconv.FormatInt(outboxID, 10)}, func(v [][]byte) (bool, error) {
		found = true
		b.Row(v, outboxID)
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, relay.Permanent(fmt.Errorf("row %d of %s is gone; discard the dead letter", outboxID, t))
	}
	if row := b.Large(); row != nil {
		b.Discard()
		if err := s.refetchLarge(ctx, db, t, b, row, hold); err != nil {
			return nil, err
		}
	}
	msgs, _ := b.Finish()
	for i := range msgs {
		msgs[i].Token = nil // it is not one of the tracker's
	}
	return msgs, nil
}

func (s *Source) refetchLarge(
	ctx context.Context, db scan.DB, t *table.Table, b *rows.Builder, row *rows.Large, hold func(bytes int64) error,
) error {
	payload, length, err := stream.Payload(ctx, db, t, row.ID, unasked)
	if err != nil {
		return err
	}
	tooLarge := s.cfg.tooLarge(length, "row %d of %s", row.ID, t)
	if s.cfg.streams && length > stream.Above {
		e, err := s.cfg.outline(ctx, pool{s.pool}, db, t, row.ID, length)
		if err != nil {
			return err
		}
		if e.Stream != nil {
			b.AddUnread(row, e, nil)
			return nil
		}
	}
	if tooLarge != nil {
		return relay.Permanent(tooLarge)
	}
	if payload == nil {
		if err = hold(length); err == nil {
			payload, _, err = stream.Payload(ctx, db, t, row.ID, length)
		}
	}
	if err != nil {
		return err
	}
	if payload == nil {
		return fmt.Errorf("row %d of %s has changed while it was read", row.ID, t)
	}
	b.AddLarge(row, payload)
	return nil
}

// outline returns what is known of a row's only event; its stream, if the sink sends streams.
func (c *Config) outline(ctx context.Context, conns connector, db scan.DB, t *table.Table, id, length int64) (rows.Event, error) {
	if !c.streams {
		return stream.Outline(ctx, db, t, id, length, nil)
	}
	connect := func(ctx context.Context) (scan.DB, func(), error) {
		c, db, err := conns.connect(ctx)
		if err != nil {
			return nil, nil, err
		}
		return db, c.Release, nil
	}
	return stream.Outline(ctx, db, t, id, length, &stream.Row{Patience: c.Patience, Connect: connect})
}
