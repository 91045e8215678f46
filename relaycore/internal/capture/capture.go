// Package capture watches the tables whose changes an outbox records. A table can be
// dropped and created, get another owner, column or partition, or lose its triggers.
// Then its changes are not recorded, or not as they should be, and nothing fails. So
// the package asks the database once a minute. An event trigger would report it at once, but
// only a superuser may make one.
package capture

import (
	"context"
	_ "embed"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

//go:embed problems.sql
var problemsSQL string

// Problem is a reason why changes of a table are not recorded as they should be.
type Problem struct {
	Outbox string // name of the table in schema pgtrickle
	Text   string
	Cure   string // a statement, or what to do
	Table  uint32 // oid of the table that is captured, 0 if it is gone
}

// Problems returns the problems of the outbox table, or of all outboxes if table is
// empty, in the order of their names. It returns none where there is no outbox of ours.
func Problems(ctx context.Context, db pg.Querier, table string) ([]Problem, error) {
	rows, err := db.Query(ctx, problemsSQL, table)
	var found []Problem
	if err == nil {
		found, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Problem])
	}
	if pg.IsMissing(err) {
		return nil, nil // the extension owns the outboxes, or the catalog is older
	}
	if err != nil {
		return nil, fmt.Errorf("look at captured tables: %w", err)
	}
	return found, nil
}

// Watch looks at every interval until ctx ends. It logs each problem when it first
// sees it, and gives report the number of problems of each outbox that has any. A table
// can be mended, dropped and created between two looks: its problem is a new one.
func Watch(ctx context.Context, db pg.Querier, log *slog.Logger, every time.Duration, report func(map[string]int)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	known := make(map[Problem]bool)
	for {
		problems, err := Problems(ctx, db, "")
		switch {
		case err == nil:
			known = logNew(log, known, problems)
			report(count(problems))
		case ctx.Err() == nil:
			log.Warn("cannot look at captured tables", "err", err)
		}

		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// logNew logs the problems that are not known, and returns those that are known now.
func logNew(log *slog.Logger, known map[Problem]bool, problems []Problem) map[Problem]bool {
	now := make(map[Problem]bool, len(problems))
	for _, p := range problems {
		now[p] = true
		if !known[p] {
			log.Warn("changes are not recorded properly", "outbox", p.Outbox, "problem", p.Text, "cure", p.Cure)
		}
	}
	return now
}

func count(problems []Problem) map[string]int {
	n := make(map[string]int)
	for _, p := range problems {
		n[p.Outbox]++
	}
	return n
}
