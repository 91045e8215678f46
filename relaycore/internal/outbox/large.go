package outbox

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var (
	//go:embed sql/large.sql
	largeSQL string
	//go:embed sql/large_members.sql
	largeMembersSQL string
)

const (
	slice   = 1 << 20 // bytes of a payload in one message of the server
	unasked = 1 << 20 // bytes of a payload that is read without being asked for
)

// readLarge reads the payload of a large row. The first call reads one that is small
// enough to be held unasked, or finds its length. The next call reads it.
func (r *reader) readLarge(ctx context.Context, db scan.DB) error {
	row := r.large
	payload, length, err := fetchPayload(ctx, db, r.table, row.ID, max(r.wants, unasked))
	tooLarge := r.cfg.tooLarge(length, "row %d of %s", row.ID, r.table)
	switch {
	case err != nil:
		return fmt.Errorf("row %d: %w", row.ID, err)
	case length < 0:
		r.builder.RefuseLarge(row, nil, "", fmt.Errorf("row %d of %s was deleted before its payload was read", row.ID, r.table))
	case tooLarge != nil:
		members, op := smallMembers(ctx, db, r.table, row.ID)
		r.builder.RefuseLarge(row, members, op, tooLarge)
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

// tooLarge returns an [engine.TooLargeError] if a row of length bytes is larger than a row
// may be. The row is named by format and args.
func (c *Config) tooLarge(length int64, format string, args ...any) error {
	if c.MaxRow <= 0 || length <= c.MaxRow {
		return nil
	}
	return &engine.TooLargeError{What: fmt.Sprintf(format, args...), Length: length, Max: c.MaxRow}
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
	payload, length, err := fetchPayload(ctx, db, t, row.ID, unasked)
	if tooLarge := s.cfg.tooLarge(length, "row %d of %s", row.ID, t); err == nil && tooLarge != nil {
		return relay.Permanent(tooLarge)
	}
	if err == nil && payload == nil {
		if err = hold(length); err == nil {
			payload, _, err = fetchPayload(ctx, db, t, row.ID, length)
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

// fetchPayload returns the payload of a row and its length in bytes. The payload is nil
// if it is longer than limit. The length is -1 if there is no such row.
func fetchPayload(ctx context.Context, db scan.DB, t *table.Table, id, limit int64) (payload []byte, length int64, err error) {
	name := pg.Identifier(t.Columns.Payload)
	if t.Type(t.Columns.Payload) != "bytea" {
		name = "convert_to(" + name + "::text, 'UTF8')"
	}
	length = -1
	sql := strings.NewReplacer("{payload}", name, "{table}", t.Qualified(), "{id}", t.ID(), "{slice}", strconv.Itoa(slice)).Replace(largeSQL)
	args := []string{strconv.FormatInt(id, 10), strconv.FormatInt(limit, 10)}
	err = db.Query(ctx, sql, []int16{0, 0, 1}, args, func(v [][]byte) (bool, error) {
		at, err := rows.ParseID(v[1])
		if err == nil {
			length, err = rows.ParseID(v[0])
		}
		if err != nil || v[2] == nil {
			return false, err
		}
		if payload == nil {
			payload = make([]byte, 0, length)
		}
		if at != int64(len(payload))+1 {
			return false, errors.New("slices of the payload came out of order")
		}
		payload = append(payload, v[2]...)
		return true, nil
	})
	return payload, length, err
}

// smallMembers returns an object with the members of a row's only event that are small,
// and its operation; nil if there is no such event. They make the key and the subject of
// a row that is not read.
func smallMembers(ctx context.Context, db scan.DB, t *table.Table, id int64) (object []byte, op string) {
	sql := strings.NewReplacer("{payload}", pg.Identifier(t.Columns.Payload), "{table}", t.Qualified(), "{id}", t.ID(),
		"{plain}", strconv.FormatBool(t.Plain)).Replace(largeMembersSQL)
	err := db.Query(ctx, sql, nil, []string{strconv.FormatInt(id, 10)}, func(v [][]byte) (bool, error) {
		object, op = append(object, v[0]...), string(v[1])
		return true, nil
	})
	if err != nil {
		return nil, "" // it is no JSON
	}
	return object, op
}
