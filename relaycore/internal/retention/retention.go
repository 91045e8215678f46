// Package retention deletes delivered rows from the outboxes that this project
// made, once they are older than pgt_outbox_config.retention_hours. Outboxes that
// the extension made are left to it: it deletes by age alone.
//
// A row is deleted when it is old and when every reader has it: every pipeline of
// every group, disabled ones and those that have never run too, and the members of
// the extension's consumer groups. So a pipeline that is away keeps its rows, and
// one that will not come back must be deleted for its rows to go; the report says
// who holds what.
//
// Rows are deleted from the lowest id on, in ranges of ids and one transaction
// each. They lie side by side, so VACUUM gives their pages back to the next rows
// or to the system, and no transaction is long. Of an outbox that is partitioned by
// ranges of id or created_at, whole partitions are dropped instead, when all of
// their rows may go and none can come to them any more.
package retention

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
)

// Options tune a sweep. The zero value is a good choice.
type Options struct {
	Batch int           // ids a transaction covers; 0 means 10,000
	Pause time.Duration // between transactions; 0 means 10 ms
}

// Report is what became of one outbox.
type Report struct {
	Table    string
	Deleted  int64
	Dropped  []string        // partitions
	Floor    int64           // every reader has everything up to it
	Slowest  []outbox.Reader // who is at the floor
	HeldBack bool            // there are rows that are old enough and not delivered to all
}

const outboxesSQL = `SELECT outbox_table_name, retention_hours FROM (` + outbox.SweptSQL + `) s ORDER BY 1`

// Sweep goes over all outboxes once. A process that finds another one sweeping
// leaves it to that one and returns nothing.
func Sweep(ctx context.Context, pool *pgxpool.Pool, opts Options) ([]Report, error) {
	opts.Batch = cmp.Or(opts.Batch, 10000)
	opts.Pause = cmp.Or(opts.Pause, 10*time.Millisecond)
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("sweep outboxes: %w", err)
	}
	defer conn.Release()
	if mine, err := store.TryLockSweep(ctx, conn); err != nil || !mine {
		return nil, err
	}
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := store.UnlockSweep(last, conn); err != nil {
			_ = conn.Conn().Close(last) // ends the session and so the lock
		}
	}()
	rows, err := conn.Query(ctx, outboxesSQL)
	if err != nil {
		return nil, missing(err)
	}
	type entry struct {
		Name  string
		Hours int
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
	if err != nil {
		return nil, missing(err)
	}
	var reports []Report
	var errs []error
	for _, o := range all {
		r, err := sweep(ctx, conn, o.Name, o.Hours, opts)
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep outbox %s: %w", o.Name, err))
			continue
		}
		reports = append(reports, r)
	}
	return reports, errors.Join(errs...)
}

// missing is no error where the catalog is not installed.
func missing(err error) error {
	if pg.IsMissing(err) {
		return nil
	}
	return fmt.Errorf("list outboxes: %w", err)
}

func sweep(ctx context.Context, conn *pgxpool.Conn, name string, hours int, opts Options) (Report, error) {
	ident := pg.Identifier("pgtrickle", name)
	table, readers, err := outbox.Readers(ctx, conn, ident)
	r := Report{Table: table}
	if err != nil || len(readers) == 0 {
		return r, err // rows that nobody reads yet are kept for who comes
	}
	r.Floor = slices.MinFunc(readers, func(a, b outbox.Reader) int { return cmp.Compare(a.LastID, b.LastID) }).LastID
	for _, x := range readers {
		if x.LastID == r.Floor {
			r.Slowest = append(r.Slowest, x)
		}
	}
	var byRange bool
	if err := conn.QueryRow(ctx, byRangeSQL, ident).Scan(&byRange); err != nil {
		return r, err
	}
	if byRange {
		err := dropPartitions(ctx, conn, name, hours, &r)
		return r, err
	}
	for {
		var first *int64
		var old bool
		err := conn.QueryRow(ctx, `SELECT id, created_at < now() - make_interval(hours => $1) FROM `+ident+` ORDER BY id LIMIT 1`, hours).Scan(&first, &old)
		if errors.Is(err, pgx.ErrNoRows) {
			return r, nil
		}
		if err != nil {
			return r, err
		}
		if !old {
			return r, nil
		}
		if *first > r.Floor {
			r.HeldBack = true
			return r, nil
		}
		// Stops at the first row that is too young: what follows is younger, or will
		// be old soon.
		tag, err := conn.Exec(ctx, `DELETE FROM `+ident+` WHERE id >= $1 AND id <= least($2::bigint, $3::bigint, (
				SELECT coalesce(min(id) - 1, $3) FROM `+ident+` WHERE id >= $1 AND id <= $3 AND created_at >= now() - make_interval(hours => $4)))`,
			*first, r.Floor, *first+int64(opts.Batch)-1, hours)
		if err != nil {
			return r, err
		}
		r.Deleted += tag.RowsAffected()
		if tag.RowsAffected() == 0 {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(opts.Pause):
		}
	}
}

const byRangeSQL = `SELECT EXISTS (SELECT FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
	WHERE p.partrelid = to_regclass($1) AND p.partstrat = 'r' AND p.partnatts = 1 AND a.attname IN ('id', 'created_at'))`

// dropPartitions drops what may go, one partition a transaction. Only the owner may
// drop, so a function of the owner's does.
func dropPartitions(ctx context.Context, conn *pgxpool.Conn, name string, hours int, r *Report) error {
	for {
		var part *string
		var rows int64
		if err := conn.QueryRow(ctx, `SELECT part, deleted FROM pgtrickle._relay_drop_partition($1, $2)`, name, r.Floor).Scan(&part, &rows); err != nil {
			return err
		}
		if part == nil {
			break
		}
		r.Dropped = append(r.Dropped, *part)
		r.Deleted += rows
	}
	err := conn.QueryRow(ctx, `SELECT created_at < now() - make_interval(hours => $1) FROM `+pg.Identifier("pgtrickle", name)+` WHERE id > $2 ORDER BY id LIMIT 1`, hours, r.Floor).Scan(&r.HeldBack)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return err
}

// Run sweeps every so often until ctx ends, and logs what is worth it.
func Run(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger, every time.Duration, opts Options) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	held := make(map[string]string) // said once, and again when it changes
	for {
		reports, err := Sweep(ctx, pool, opts)
		if err != nil && ctx.Err() == nil {
			log.Error("sweep outboxes", "err", err)
		}
		for _, r := range reports {
			if r.Deleted > 0 || len(r.Dropped) > 0 {
				log.Info("deleted delivered rows", "table", r.Table, "rows", r.Deleted, "up_to_id", r.Floor, "partitions", r.Dropped)
			}
			slowest := fmt.Sprint(r.Slowest)
			if !r.HeldBack {
				delete(held, r.Table)
			} else if held[r.Table] != slowest {
				held[r.Table] = slowest
				log.Warn("rows are older than their retention and wait for a reader", "table", r.Table, "slowest", slowest)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
