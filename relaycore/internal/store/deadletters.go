package store

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var (
	//go:embed sql/deliverable.sql
	deliverableSQL string
	//go:embed sql/dead_letters_held.sql
	deadLettersHeldSQL string
	//go:embed sql/expire_dead_letters.sql
	expireDeadLettersSQL string
)

// The states of a dead letter. SQL functions set the third, retry.
const (
	statusDead   = "dead"
	statusParked = "parked"
)

// deadLetter is a row of relay_dead_letters as commit_dead_letters.sql reads it.
type deadLetter struct {
	MessageID   string      `json:"message_id"`
	Key         string      `json:"key"`
	Subject     string      `json:"subject"`
	Op          string      `json:"op"`
	Body        []byte      `json:"body"`
	Before      []byte      `json:"before"`
	ContentType string      `json:"content_type"`
	Headers     [][2]string `json:"headers"`
	StreamTable string      `json:"stream_table"`
	OutboxID    int64       `json:"outbox_id"`
	RefreshID   string      `json:"refresh_id"`
	FullRefresh bool        `json:"full_refresh"`
	Origin      string      `json:"origin"`
	MessageTime *time.Time  `json:"message_time"`
	Error       string      `json:"error"`
	Class       string      `json:"class"`
	Attempts    int         `json:"attempts"`
	Status      string      `json:"status"`
	ByReference bool        `json:"by_reference"`
}

// deadLetters encodes one row for each message id, because a statement can change a
// row only once. The later of two with one id counts, unless only the first was
// tried.
func (l *Ledger) deadLetters(dead []engine.DeadLetter) ([]byte, error) {
	rows := make([]deadLetter, 0, len(dead))
	places := make(map[string]int, len(dead))
	for i := range dead {
		row := l.deadLetter(&dead[i])
		at, again := places[row.MessageID]
		switch {
		case !again:
			places[row.MessageID] = len(rows)
			rows = append(rows, row)
		case row.Status == statusDead || rows[at].Status == statusParked:
			row.Attempts += rows[at].Attempts
			rows[at] = row
		}
	}
	encoded, err := json.Marshal(rows)
	if err != nil {
		return nil, fmt.Errorf("encode dead letters: %w", err)
	}
	return encoded, nil
}

func (l *Ledger) deadLetter(d *engine.DeadLetter) deadLetter {
	m := &d.Message
	row := deadLetter{
		MessageID: indexed(m.ID), Key: indexed(m.Key), Subject: text(l.conceal(m.Subject)), Op: text(m.Op),
		Body: m.Row, Before: m.Before, ContentType: text(m.ContentType), Headers: l.headerPairs(m.Headers),
		StreamTable: text(m.StreamTable), OutboxID: m.OutboxID, RefreshID: text(m.RefreshID), FullRefresh: m.FullRefresh,
		Origin: text(m.Origin), MessageTime: timestamp(m.Time),
		Error: text(l.conceal(d.Reason)), Class: d.Class, Attempts: max(d.Attempts, 1), Status: statusDead,
		ByReference: d.ByReference,
	}
	if d.Parked() {
		row.Status, row.Attempts = statusParked, 0
	}
	// A message that could not be encoded has only its row, one that could not be
	// decoded only its body.
	if l.key.Direction == relay.Reverse || row.Body == nil {
		row.Body = m.Body
	}
	if row.Body == nil {
		row.Body = []byte{}
	}
	return row
}

func (l *Ledger) headerPairs(headers []relay.Header) [][2]string {
	pairs := make([][2]string, 0, len(headers))
	for _, h := range headers {
		if !slices.Contains(l.rendered, h.Name) {
			pairs = append(pairs, [2]string{text(h.Name), text(h.Value)})
		}
	}
	return pairs
}

// Deliverable returns at most limit dead letters that may be delivered now, in the
// order in which they must be.
func (l *Ledger) Deliverable(ctx context.Context, limit int) ([]engine.DeadLetter, error) {
	rows, err := l.store.db.Query(ctx, deliverableSQL, l.store.args(l.key, pgx.StrictNamedArgs{"limit": limit}))
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	found, err := pgx.CollectRows(rows, l.scanDeliverable)
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return found, nil
}

func (l *Ledger) scanDeliverable(row pgx.CollectableRow) (engine.DeadLetter, error) {
	var d engine.DeadLetter
	m := &d.Message
	var body, headers []byte
	var sent *time.Time
	err := row.Scan(&d.ID, &m.ID, &m.Key, &m.Subject, &m.Op, &body, &m.Before, &m.ContentType, &headers,
		&m.StreamTable, &m.OutboxID, &m.RefreshID, &m.FullRefresh, &m.Origin, &sent, &d.Class, &d.Attempts, &d.ByReference)
	if err != nil {
		return engine.DeadLetter{}, err
	}
	if sent != nil {
		m.Time = *sent
	}

	switch {
	case l.key.Direction == relay.Reverse:
		m.Body = body
	case d.Class == engine.ClassDecode: // it stands for unknown messages; SQL does not release it
		m.Body = body
		m.Err = relay.Permanent(fmt.Errorf("decode row %d: not possible; publish it with replay, and discard this dead letter", m.OutboxID))
	default:
		// The subject is rendered again, by the template as it is now. The key stays,
		// because the dead letter waits behind others of that key.
		m.Row, m.Subject = body, ""
	}

	var pairs [][2]string
	if err := json.Unmarshal(headers, &pairs); err != nil {
		return engine.DeadLetter{}, fmt.Errorf("headers of dead letter %d: %w", d.ID, err)
	}
	for _, p := range pairs {
		m.Headers = append(m.Headers, relay.Header{Name: p[0], Value: p[1]})
	}
	return d, nil
}

// Key returns the form in which key is stored.
func (l *Ledger) Key(key string) string { return indexed(key) }

// ParkedKeys returns the keys that have dead letters, whose later messages must wait.
func (l *Ledger) ParkedKeys(ctx context.Context) ([]string, error) {
	rows, err := l.store.db.Query(ctx, `
		SELECT DISTINCT key FROM pgtrickle.relay_dead_letters
		WHERE relay_group_id = @group AND direction = @direction AND pipeline = @pipeline AND key <> ''`, l.store.args(l.key, nil))
	if err != nil {
		return nil, fmt.Errorf("read parked keys: %w", err)
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read parked keys: %w", err)
	}
	return keys, nil
}

// Held returns how many dead letters and parked messages the pipeline has, counted up to
// limit. Retried is whether some of them are to be delivered again.
func (l *Ledger) Held(ctx context.Context, limit int64) (n int64, retried bool, err error) {
	err = l.store.db.QueryRow(ctx, deadLettersHeldSQL, l.store.args(l.key, pgx.StrictNamedArgs{"limit": limit})).Scan(&n, &retried)
	if err != nil {
		return 0, false, fmt.Errorf("count dead letters: %w", err)
	}
	return n, retried, nil
}

// Expired is a dead letter that was deleted for its age.
type Expired struct {
	MessageID, Key, Class string
	OutboxID              int64 // 0 for a message from a broker
	Created               time.Time
}

// Expire deletes the dead letters that are older than age, at most a thousand, and
// returns them. What is parked behind them may be delivered then.
func (l *Ledger) Expire(ctx context.Context, age time.Duration) ([]Expired, error) {
	rows, err := l.store.db.Query(ctx, expireDeadLettersSQL,
		l.store.args(l.key, pgx.StrictNamedArgs{"epoch": l.epoch, "age": age.Microseconds()}))
	if err != nil {
		return nil, fmt.Errorf("expire dead letters: %w", err)
	}
	expired, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Expired])
	if err != nil {
		return nil, fmt.Errorf("expire dead letters: %w", err)
	}
	return expired, nil
}
