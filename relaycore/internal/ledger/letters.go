package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// writeLetters stores letters in order. One that is stored already, from before
// a crash or a redrive, keeps its place among the letters of its key.
func (l *Ledger) writeLetters(ctx context.Context, tx pgx.Tx, letters []engine.Letter) error {
	batch := new(pgx.Batch)
	for i := range letters {
		letter := &letters[i]
		m := &letter.Message
		status, attempts := "dead", max(letter.Attempts, 1)
		if letter.Parked() {
			status, attempts = "parked", 0
		}
		body := m.Row
		if l.id.Direction == relay.Reverse || body == nil {
			body = m.Body
		}
		if body == nil {
			body = []byte{}
		}
		var sent *time.Time
		if !m.Time.IsZero() {
			sent = &m.Time
		}
		batch.Queue(`
			INSERT INTO pgtrickle.relay_dead_letters AS d (relay_group_id, direction, pipeline, message_id, key, subject, op, body, before,
				content_type, headers, stream_table, outbox_id, refresh_id, full_refresh, origin, message_time, error, class, attempts, status)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, nullif($13, 0), nullif($14, ''), $15, nullif($16, ''), $17, $18, $19, $20, $21)
			ON CONFLICT (relay_group_id, direction, pipeline, message_id) DO UPDATE SET
				error = excluded.error, class = excluded.class, status = excluded.status,
				attempts = d.attempts + excluded.attempts, updated_at = now()
			WHERE d.status <> 'dead' OR excluded.status = 'dead'`,
			l.id.Group, l.id.Direction, l.id.Pipeline, m.ID, text(m.Key), text(m.Subject), m.Op, body, m.Before,
			text(m.ContentType), marshalHeaders(m.Headers), m.StreamTable, m.OutboxID, m.RefreshID, m.FullRefresh, text(m.Origin), sent,
			text(letter.Reason), letter.Class, attempts, status)
	}
	return tx.SendBatch(ctx, batch).Close()
}

// text drops what PostgreSQL's text type cannot hold, so that an odd key or
// error can never keep its message out of the dead letters.
func text(s string) string {
	out := make([]rune, 0, len(s))
	clean := true
	for _, r := range s {
		if r == 0 || r == '\uFFFD' {
			clean, r = false, '\uFFFD'
		}
		out = append(out, r)
	}
	if clean {
		return s
	}
	return string(out)
}

func marshalHeaders(headers []relay.Header) string {
	pairs := make([][2]string, len(headers))
	for i, h := range headers {
		pairs[i] = [2]string{text(h.Name), text(h.Value)}
	}
	b, err := json.Marshal(pairs)
	if err != nil {
		return "[]" // not reached: strings always marshal
	}
	return string(b)
}

// deliverableSQL picks, per key, the letters up to the first that is dead, if
// the key's first letter is not itself dead. Letters without a key stand alone.
const deliverableSQL = `
WITH mine AS (
	SELECT *, min(id) FILTER (WHERE status = 'dead') OVER (PARTITION BY CASE WHEN key = '' THEN id::text ELSE 'k' || key END) AS blocked_at
	FROM pgtrickle.relay_dead_letters
	WHERE relay_group_id = $1 AND direction = $2 AND pipeline = $3
)
SELECT id, message_id, key, coalesce(subject, ''), coalesce(op, ''), body, before, coalesce(content_type, ''), headers,
	coalesce(stream_table, ''), coalesce(outbox_id, 0), coalesce(refresh_id, ''), full_refresh, coalesce(origin, ''),
	message_time, class, attempts
FROM mine
WHERE id < coalesce(blocked_at, 9223372036854775807)
ORDER BY id
LIMIT $4`

// Deliverable returns at most limit letters that may be delivered now, in the
// order in which they must be.
func (l *Ledger) Deliverable(ctx context.Context, limit int) ([]engine.Letter, error) {
	rows, err := l.pool.Query(ctx, deliverableSQL, l.id.Group, l.id.Direction, l.id.Pipeline, limit)
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	letters, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (engine.Letter, error) {
		var letter engine.Letter
		m := &letter.Message
		var body, headers []byte
		var sent *time.Time
		err := row.Scan(&letter.ID, &m.ID, &m.Key, &m.Subject, &m.Op, &body, &m.Before, &m.ContentType, &headers,
			&m.StreamTable, &m.OutboxID, &m.RefreshID, &m.FullRefresh, &m.Origin, &sent, &letter.Class, &letter.Attempts)
		if err != nil {
			return engine.Letter{}, err
		}
		if sent != nil {
			m.Time = *sent
		}
		switch {
		case l.id.Direction == relay.Reverse:
			m.Body = body
		case letter.Class == engine.ClassDecode: // it stands for messages that nobody knows; SQL does not let it through
			m.Body, m.Err = body, relay.Permanent(fmt.Errorf("row %d could not be decoded: publish it with replay, and discard this letter", m.OutboxID))
		default:
			// The subject is rendered anew, by the template as it is now. The key stays:
			// it says behind what the letter waits.
			m.Row, m.Subject = body, ""
		}
		var pairs [][2]string
		if err := json.Unmarshal(headers, &pairs); err != nil {
			return engine.Letter{}, fmt.Errorf("headers of dead letter %d: %w", letter.ID, err)
		}
		for _, p := range pairs {
			m.Headers = append(m.Headers, relay.Header{Name: p[0], Value: p[1]})
		}
		return letter, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return letters, nil
}

// ParkedKeys returns the keys that have letters, whose later messages must wait.
func (l *Ledger) ParkedKeys(ctx context.Context) ([]string, error) {
	rows, err := l.pool.Query(ctx, `
		SELECT DISTINCT key FROM pgtrickle.relay_dead_letters
		WHERE relay_group_id = $1 AND direction = $2 AND pipeline = $3 AND key <> ''`,
		l.id.Group, l.id.Direction, l.id.Pipeline)
	if err != nil {
		return nil, fmt.Errorf("read parked keys: %w", err)
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read parked keys: %w", err)
	}
	return keys, nil
}
