package store

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var (
	//go:embed sql/dead_letter_counts.sql
	deadLetterCountsSQL string

	//go:embed sql/dead_letter_list.sql
	deadLetterListTemplate string
	deadLetterListSQL      = strings.ReplaceAll(deadLetterListTemplate, ":filter", filterSQL)

	//go:embed sql/dead_letter_summary.sql
	deadLetterSummaryTemplate string
	deadLetterSummarySQL      = strings.ReplaceAll(deadLetterSummaryTemplate, ":filter", filterSQL)
)

// DeadLetterCounts are how many dead letters and parked messages a pipeline has.
type DeadLetterCounts struct{ Dead, Parked int64 }

// CountDeadLetters counts the dead letters of the group's pipelines.
func (s Store) CountDeadLetters(ctx context.Context) (map[Key]DeadLetterCounts, error) {
	rows, err := s.db.Query(ctx, deadLetterCountsSQL, s.group)
	if err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	counts := make(map[Key]DeadLetterCounts)
	var key Key
	var n DeadLetterCounts
	_, err = pgx.ForEachRow(rows, []any{&key.Direction, &key.Name, &n.Dead, &n.Parked}, func() error {
		counts[key] = n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	return counts, nil
}

// DeadRows returns the outbox ids of a forward pipeline's dead letters, and whether
// each is dead, rather than parked or waiting for a redrive.
func (s Store) DeadRows(ctx context.Context, pipeline string) (ids []int64, dead []bool, err error) {
	rows, err := s.db.Query(ctx, `
		SELECT outbox_id, bool_or(status = 'dead') FROM pgtrickle.relay_dead_letters
		WHERE relay_group_id = @group AND direction = @direction AND pipeline = @pipeline AND outbox_id IS NOT NULL
		GROUP BY outbox_id ORDER BY outbox_id`, s.args(Key{relay.Forward, pipeline}, nil))
	if err != nil {
		return nil, nil, fmt.Errorf("read dead letters: %w", err)
	}
	var id int64
	var isDead bool
	_, err = pgx.ForEachRow(rows, []any{&id, &isDead}, func() error {
		ids, dead = append(ids, id), append(dead, isDead)
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read dead letters: %w", err)
	}
	return ids, dead, nil
}

// ReferredRows returns the outbox ids to which dead letters of these forward pipelines
// refer, in all groups. The bodies of these rows are stored nowhere else.
func ReferredRows(ctx context.Context, db pg.Querier, pipelines []string) ([]int64, error) {
	rows, err := db.Query(ctx, `
		SELECT DISTINCT outbox_id FROM pgtrickle.relay_dead_letters
		WHERE by_reference AND direction = 'forward' AND outbox_id IS NOT NULL AND pipeline = ANY ($1)`, pipelines)
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return ids, nil
}

// DeadLetterFilter selects dead letters of the group. A zero field selects all.
type DeadLetterFilter struct {
	Pipeline      string
	Direction     relay.Direction
	IDs           []int64
	Key, Class    string
	Before, After time.Time // when they were stored
	Limit         int       // of a list; 0: none
}

const filterSQL = `p_pipeline => nullif(@pipeline, ''), p_direction => nullif(@direction, ''), p_ids => @ids,
	p_key => nullif(@key, ''), p_class => nullif(@class, ''), p_before => @before, p_after => @after, p_group => @group`

func (s Store) filter(f DeadLetterFilter) pgx.StrictNamedArgs {
	optional := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		return &t
	}
	return pgx.StrictNamedArgs{
		"group": s.group, "pipeline": f.Pipeline, "direction": f.Direction, "ids": f.IDs, "key": f.Key, "class": f.Class,
		"before": optional(f.Before), "after": optional(f.After),
	}
}

// DeadLetter is a stored dead letter as operators see it.
type DeadLetter struct {
	ID        int64           `json:"id"`
	Group     string          `json:"group"`
	Direction string          `json:"direction"`
	Pipeline  string          `json:"pipeline"`
	MessageID string          `json:"message_id"`
	Key       string          `json:"key"`
	Subject   string          `json:"subject"`
	Op        string          `json:"op"`
	Status    string          `json:"status"`
	Class     string          `json:"class"`
	Error     string          `json:"error"`
	Attempts  int             `json:"attempts"`
	Size      int64           `json:"size"`
	Body      string          `json:"body,omitempty"` // as text; bytes that are not UTF-8 are replaced
	Headers   json.RawMessage `json:"headers"`
	Created   time.Time       `json:"created_at"`
	Original  string          `json:"original,omitempty"` // kept, gone or unknown: its outbox row, if it has no body of its own
}

// DeadLetterSummary counts the dead letters of a pipeline with the same class and error.
type DeadLetterSummary struct {
	Pipeline  string    `json:"pipeline"`
	Direction string    `json:"direction"`
	Status    string    `json:"status"`
	Class     string    `json:"class"`
	Error     string    `json:"error"`
	Count     int64     `json:"count"`
	First     time.Time `json:"first_at"`
	Last      time.Time `json:"last_at"`
}

// SummarizeDeadLetters counts the dead letters that f selects.
func (s Store) SummarizeDeadLetters(ctx context.Context, f DeadLetterFilter) ([]DeadLetterSummary, error) {
	rows, err := s.db.Query(ctx, deadLetterSummarySQL, s.limited(f))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[DeadLetterSummary])
}

func (s Store) limited(f DeadLetterFilter) pgx.StrictNamedArgs {
	args := s.filter(f)
	args["limit"] = f.Limit
	return args
}

// ListDeadLetters returns the dead letters that f selects, in the order of their ids.
// They have bodies if f names ids.
func (s Store) ListDeadLetters(ctx context.Context, f DeadLetterFilter) ([]DeadLetter, error) {
	rows, err := s.db.Query(ctx, deadLetterListSQL, s.limited(f))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (DeadLetter, error) {
		var d DeadLetter
		var body []byte
		err := r.Scan(&d.ID, &d.Group, &d.Direction, &d.Pipeline, &d.MessageID, &d.Key, &d.Subject, &d.Op, &d.Status, &d.Class,
			&d.Error, &d.Attempts, &d.Size, &body, &d.Headers, &d.Created, &d.Original)
		d.Body = strings.ToValidUTF8(string(body), "\uFFFD")
		return d, err
	})
}

// RetryDeadLetters releases the dead letters that f selects, and returns how many.
// f must name a pipeline.
func (s Store) RetryDeadLetters(ctx context.Context, f DeadLetterFilter) (int64, error) {
	return s.changeDeadLetters(ctx, `SELECT pgtrickle.relay_dlq_retry(`+filterSQL+`)`, f)
}

// DiscardDeadLetters deletes the dead letters that f selects, and returns how many.
// f must name a pipeline.
func (s Store) DiscardDeadLetters(ctx context.Context, f DeadLetterFilter) (int64, error) {
	return s.changeDeadLetters(ctx, `SELECT pgtrickle.relay_dlq_discard(`+filterSQL+`)`, f)
}

func (s Store) changeDeadLetters(ctx context.Context, sql string, f DeadLetterFilter) (n int64, err error) {
	err = s.db.QueryRow(ctx, sql, s.filter(f)).Scan(&n)
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Hint != "" {
		return 0, fmt.Errorf("%s; %s", refused.Message, refused.Hint)
	}
	return n, err
}
