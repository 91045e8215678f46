package outbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// stream adds the next deltas of a claim check to the builder, as many as may
// be held in memory at once, and reports whether these were the last.
func (s *Source) stream(ctx context.Context, db *session, c *claimed) (last bool, err error) {
	b := s.builder
	e := event{id: c.id, idText: strconv.AppendInt(nil, c.id, 10), created: c.created, index: c.index}
	if c.refresh != "" {
		b.text = append(b.text, c.refresh...)
		e.refreshEnd = len(b.text)
	}
	if s.table.delta.name == "" {
		if err := s.table.findDelta(ctx, db.conn); err != nil {
			return false, err
		}
	}
	first := len(b.slots)
	if s.table.delta.name == "" {
		b.undecodable(&e, nil, errors.New("it is a claim check, and there is no delta table that may be read; GRANT SELECT on outbox_delta_rows_… to pgtrickle_relay"))
		b.end(c.id, first)
		return true, nil
	}
	d := &s.table.delta
	want := s.claimRows
	sql := `SELECT row_num, ` + d.op + `, ` + d.data + ` FROM ` + d.name + ` WHERE outbox_id = $1::bigint AND row_num > $2::bigint ORDER BY row_num LIMIT $3::int`
	rows, cut := 0, false
	err = db.query(ctx, sql, nil, []string{itoa(c.id), itoa(c.next), strconv.Itoa(want)}, func(v [][]byte) (bool, error) {
		num, err := parseID(v[0])
		if err != nil {
			return false, err
		}
		c.next = num
		rows++
		data := b.keep(v[2])
		switch op := opOf(v[1]); {
		case op == "":
			b.undecodable(&e, data, fmt.Errorf("row_num %d of %s has operation %q", num, d.name, v[1]))
		case v[2] == nil || firstByte(data) != '{':
			b.undecodable(&e, data, fmt.Errorf("row_num %d of %s is not an object", num, d.name))
		default:
			b.message(&e, op, data, nil, c.full && op != relay.OpDelete, nil)
		}
		cut = b.bytes >= s.cfg.ReadBytes
		return !cut, nil
	})
	if err != nil {
		return false, fmt.Errorf("read deltas of row %d of %s: %w", c.id, s.table.qualified(), err)
	}
	c.index = e.index
	last = rows < want && !cut
	if last && !c.begun && rows == 0 {
		if err := s.checkMissing(ctx, db.conn, &e); err != nil {
			return false, err
		}
	}
	c.begun = true
	if rows > 0 {
		s.claimRows = clampRows(s.cfg.ReadBytes, b.bytes, rows)
	}
	if last {
		b.end(c.id, first)
	}
	return last, nil
}

// checkMissing tells a claim check over nothing from one whose deltas are gone.
func (s *Source) checkMissing(ctx context.Context, q querier, e *event) error {
	if s.table.columns["inserted_count"].typ == "" || s.table.columns["deleted_count"].typ == "" {
		return nil
	}
	var n int64
	err := q.QueryRow(ctx, `SELECT coalesce(sum(inserted_count + deleted_count), 0)::bigint FROM `+s.table.qualified()+` WHERE `+quote(s.table.id)+` = $1`, e.id).Scan(&n)
	if err != nil {
		return fmt.Errorf("read row %d of %s: %w", e.id, s.table.qualified(), err)
	}
	if n > 0 {
		s.builder.undecodable(e, nil, fmt.Errorf("it is a claim check for %d changes, and %s has none of them: they were consumed by another reader, or the refresh failed to write them", n, s.table.delta.name))
	}
	return nil
}
