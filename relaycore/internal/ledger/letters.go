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

// lettersSQL stores letters in order, and drops those that are delivered now.
//
// One that is stored already, from before a crash or a redrive, keeps its place
// among the letters of its key, and is dead until somebody retries it. But ids of
// a table that was truncated or created anew begin again: what has the id of a
// stored letter and is another message takes its place. A row of which that is
// true cannot be dropped by the same statement, and should not be.
const lettersSQL = `, stored AS (
	INSERT INTO pgtrickle.relay_dead_letters AS d (relay_group_id, direction, pipeline, message_id, key, subject, op, body, before,
		content_type, headers, stream_table, outbox_id, refresh_id, full_refresh, origin, message_time, error, class, attempts, status)
	SELECT $1, $2, $3, id, key, subject, op, body, before, content_type, headers::jsonb, stream_table, nullif(outbox_id, 0), nullif(refresh_id, ''),
		full_refresh, nullif(origin, ''), message_time, error, class, attempts, status
	FROM moved, unnest($14::text[], $15::text[], $16::text[], $17::text[], $18::bytea[], $19::bytea[], $20::text[], $21::text[], $22::text[],
		$23::bigint[], $24::text[], $25::boolean[], $26::text[], $27::timestamptz[], $28::text[], $29::text[], $30::integer[], $31::text[])
		WITH ORDINALITY AS u (id, key, subject, op, body, before, content_type, headers, stream_table,
			outbox_id, refresh_id, full_refresh, origin, message_time, error, class, attempts, status, place)
	ORDER BY place
	ON CONFLICT (relay_group_id, direction, pipeline, message_id) DO UPDATE SET
		key = excluded.key, subject = excluded.subject, op = excluded.op, body = excluded.body, before = excluded.before,
		content_type = excluded.content_type, headers = excluded.headers, stream_table = excluded.stream_table,
		outbox_id = excluded.outbox_id, refresh_id = excluded.refresh_id, full_refresh = excluded.full_refresh,
		origin = excluded.origin, message_time = excluded.message_time,
		error = excluded.error, class = excluded.class, status = excluded.status,
		attempts = excluded.attempts + CASE WHEN d.body = excluded.body THEN d.attempts ELSE 0 END,
		created_at = CASE WHEN d.body = excluded.body THEN d.created_at ELSE now() END, updated_at = now()
	WHERE d.status <> 'dead' OR excluded.status = 'dead'
		OR (d.key, d.op, d.body, d.before) IS DISTINCT FROM (excluded.key, excluded.op, excluded.body, excluded.before)
	RETURNING id
), dropped AS (
	DELETE FROM pgtrickle.relay_dead_letters
	WHERE id = ANY($32::bigint[]) AND EXISTS (SELECT FROM moved) AND id <> ALL (ARRAY(SELECT id FROM stored))
)`

// letters returns what lettersSQL is given.
func (l *Ledger) letters(c engine.Commit) []any {
	rows := l.rows(c.Letters)
	return []any{
		column(rows, func(r *row) string { return indexed(r.ID) }),
		column(rows, func(r *row) string { return indexed(r.Key) }),
		column(rows, func(r *row) string { return text(r.Subject) }),
		column(rows, func(r *row) string { return text(r.Op) }),
		column(rows, func(r *row) []byte { return r.body }),
		column(rows, func(r *row) []byte { return r.Before }),
		column(rows, func(r *row) string { return text(r.ContentType) }),
		column(rows, func(r *row) string { return marshalHeaders(r.Headers) }),
		column(rows, func(r *row) string { return text(r.StreamTable) }),
		column(rows, func(r *row) int64 { return r.OutboxID }),
		column(rows, func(r *row) string { return text(r.RefreshID) }),
		column(rows, func(r *row) bool { return r.FullRefresh }),
		column(rows, func(r *row) string { return text(r.Origin) }),
		column(rows, func(r *row) *time.Time { return timestamp(r.Time) }),
		column(rows, func(r *row) string { return text(r.reason) }),
		column(rows, func(r *row) string { return r.class }),
		column(rows, func(r *row) int { return r.attempts }),
		column(rows, func(r *row) string { return r.status }),
		c.Redriven,
	}
}

func column[T any](rows []row, of func(*row) T) []T {
	values := make([]T, len(rows))
	for i := range rows {
		values[i] = of(&rows[i])
	}
	return values
}

// row is what is stored of a letter.
type row struct {
	*relay.Message
	body                  []byte
	reason, class, status string
	attempts              int
}

// rows makes one row for each id, as a statement can change a row only once. Of
// two letters with one id the later one counts, unless only the first was tried.
func (l *Ledger) rows(letters []engine.Letter) []row {
	rows := make([]row, 0, len(letters))
	places := make(map[string]int, len(letters))
	for i := range letters {
		r := l.row(&letters[i])
		id := indexed(r.ID)
		at, again := places[id]
		switch {
		case !again:
			places[id] = len(rows)
			rows = append(rows, r)
		case r.status == statusDead || rows[at].status == statusParked:
			r.attempts += rows[at].attempts
			rows[at] = r
		}
	}
	return rows
}

// The states of a letter; the third, retry, is set by SQL alone.
const (
	statusDead   = "dead"
	statusParked = "parked"
)

func (l *Ledger) row(letter *engine.Letter) row {
	m := &letter.Message
	r := row{Message: m, body: m.Row, reason: letter.Reason, class: letter.Class, status: statusDead, attempts: max(letter.Attempts, 1)}
	if letter.Parked() {
		r.status, r.attempts = statusParked, 0
	}
	if l.id.Direction == relay.Reverse || r.body == nil { // what could not be encoded has only its row, what could not be decoded only its body
		r.body = m.Body
	}
	if r.body == nil {
		r.body = []byte{}
	}
	return r
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

// Key returns the form in which key is stored.
func (l *Ledger) Key(key string) string { return indexed(key) }

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
