package store

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

// Snapshot asks for the rows of a pipeline's table, or for those that a condition in SQL
// selects with the rights of the connection's role. It returns what was requested.
func (s Store) Snapshot(ctx context.Context, pipeline, where string) (string, error) {
	var selected *int64
	err := s.db.QueryRow(ctx, `SELECT pgtrickle.relay_snapshot($1, nullif($2, ''))`, pipeline, where).Scan(&selected)
	if selected == nil {
		return "all rows of " + pipeline + " were requested; status shows the progress", explainRefusal(err)
	}
	return fmt.Sprintf("%d rows of %s were selected; status shows the progress", *selected, pipeline), explainRefusal(err)
}

//go:embed sql/snapshot_requests.sql
var snapshotRequestsSQL string

// SnapshotWarnings returns a line for each pipeline whose newest request for a snapshot, or
// for its end, was refused or waits for an owner.
func (s Store) SnapshotWarnings(ctx context.Context) (lines []string, err error) {
	rows, _ := s.db.Query(ctx, snapshotRequestsSQL, s.group)
	var pipeline, by, why string
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&pipeline, &at, &by, &why}, func() error {
		became := "waits for its owner"
		if why != "" {
			became = "was refused: " + why
		}
		lines = append(lines, fmt.Sprintf("pipeline %q: snapshot that %s requested at %s %s",
			pipeline, by, at.UTC().Format(time.RFC3339), became))
		return nil
	})
	if err != nil && !pg.IsMissing(err) {
		return nil, fmt.Errorf("list requests for snapshots: %w", err)
	}
	return lines, nil
}

// CancelSnapshot asks the owner of a pipeline to end its snapshot.
func (s Store) CancelSnapshot(ctx context.Context, pipeline string) (string, error) {
	return s.notify(ctx, `SELECT pgtrickle.relay_snapshot_cancel($1)`, pipeline)
}

// Retry asks the owners to start the pipelines called name at once, if they wait.
func (s Store) Retry(ctx context.Context, name string) (string, error) {
	return s.notify(ctx, `SELECT pgtrickle.relay_retry($1)`, name)
}

// notifyTimeout bounds a call that writes a row and sends a notification.
const notifyTimeout = 30 * time.Second

func (s Store) notify(ctx context.Context, sql, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	_, err := s.db.Exec(ctx, sql, name)
	return "the owner of " + name + " was notified", explainRefusal(err)
}

// explainRefusal returns a server's error as its message and its cure.
func explainRefusal(err error) error {
	refused, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case !ok:
		return err
	case refused.Code == pgerrcode.UndefinedFunction && strings.Contains(refused.Message, "pgtrickle.relay_"):
		return errors.New("the database has no such function; run the migrate command")
	case refused.Hint != "":
		return fmt.Errorf("%s; %s", strings.TrimPrefix(refused.Message, "relay: "), refused.Hint)
	}
	return errors.New(strings.TrimPrefix(refused.Message, "relay: "))
}
