// Package retention deletes delivered rows from the outboxes that the relay made,
// once they are older than pgt_outbox_config.retention_hours. Outboxes of the
// extension are left to the extension, which deletes by age alone. Snapshots that a
// pipeline has compared go when the pipeline is deleted.
//
// A row is deleted if it has expired and every reader has it. Readers are the
// pipelines of all groups, disabled ones and those that have never run included, and
// the members of the extension's consumer groups. A pipeline that is stopped keeps its
// rows. To release them, delete the pipeline. The log names the slowest reader.
//
// Rows are deleted from the lowest id on, in ranges of ids and in one transaction
// each. The freed pages are contiguous, so that VACUUM can reuse or return them. No
// transaction is long. An outbox that is partitioned by ranges of id or created_at
// loses whole partitions instead. All rows of such a partition may be deleted, and no
// row can be added to it.
package retention

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/snapshot"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
)

var (
	//go:embed sql/delete.sql
	deleteSQL string
	//go:embed sql/partitioned.sql
	partitionedSQL string
)

// Options tune a sweep. Zero fields have good defaults.
type Options struct {
	Batch int           // ids a transaction covers; 0 means 10,000
	Pause time.Duration // between transactions; 0 means 10 ms
}

// Report is the result of a sweep of one outbox.
type Report struct {
	Table    string
	Deleted  int64
	Dropped  []string       // partitions
	Floor    int64          // every reader has everything up to it
	Slowest  []table.Reader // the readers at the floor
	HeldBack bool           // expired rows wait for a reader
}

// Run sweeps at every interval until ctx ends, and logs the results.
func Run(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger, every time.Duration, opts Options) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	warned := make(map[string]string) // the slowest readers last logged, by table
	for {
		reports, err := Sweep(ctx, pool, opts)
		if err != nil && ctx.Err() == nil {
			log.Error("cannot sweep outboxes", "err", err)
		}
		for _, r := range reports {
			if r.Deleted > 0 || len(r.Dropped) > 0 {
				log.Info("deleted delivered rows", "table", r.Table, "rows", r.Deleted, "up_to_id", r.Floor, "partitions", r.Dropped)
			}
			slowest := fmt.Sprint(r.Slowest)
			if !r.HeldBack {
				delete(warned, r.Table)
			} else if warned[r.Table] != slowest { // once, and again if it changes
				warned[r.Table] = slowest
				log.Warn("expired rows wait for a reader", "table", r.Table, "slowest", slowest)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Sweep sweeps all outboxes once. If another process is sweeping, it does nothing.
func Sweep(ctx context.Context, pool *pgxpool.Pool, opts Options) ([]Report, error) {
	opts.Batch = cmp.Or(opts.Batch, 10000)
	opts.Pause = cmp.Or(opts.Pause, 10*time.Millisecond)
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("sweep outboxes: %w", err)
	}
	defer conn.Release()
	if locked, err := store.TryLockSweep(ctx, conn); err != nil || !locked {
		return nil, err
	}
	defer unlock(ctx, conn)

	outboxes, err := list(ctx, conn)
	if err != nil {
		return nil, err
	}
	var reports []Report
	var errs []error
	for _, o := range outboxes {
		s := sweep{conn: conn, name: o.Name, hours: o.Hours, opts: opts}
		if err := s.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("sweep outbox %s: %w", o.Name, err))
			continue
		}
		reports = append(reports, s.report)
	}
	errs = append(errs, snapshot.Sweep(ctx, conn))
	return reports, errors.Join(errs...)
}

// unlock releases the lock of the sweep, or ends the session that holds it.
func unlock(ctx context.Context, conn *pgxpool.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := store.UnlockSweep(ctx, conn); err != nil {
		_ = conn.Conn().Close(ctx)
	}
}

type swept struct {
	Name  string
	Hours int
}

// list returns the outboxes to sweep, none if the catalog is not installed.
func list(ctx context.Context, db pg.Querier) ([]swept, error) {
	sql, err := table.SweptSQL(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("list outboxes: %w", err)
	}
	rows, err := db.Query(ctx, `SELECT outbox_table_name, retention_hours FROM (`+sql+`) s ORDER BY 1`)
	var found []swept
	if err == nil {
		found, err = pgx.CollectRows(rows, pgx.RowToStructByPos[swept])
	}
	if pg.IsMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list outboxes: %w", err)
	}
	return found, nil
}

// sweep deletes the expired rows of one outbox.
type sweep struct {
	conn   *pgxpool.Conn
	name   string
	hours  int
	opts   Options
	kept   []int64 // rows that dead letters refer to
	report Report
}

func (s *sweep) table() string { return pg.Identifier("pgtrickle", s.name) }

func (s *sweep) run(ctx context.Context) error {
	name, readers, err := table.Readers(ctx, s.conn, s.table())
	s.report.Table = name
	if err != nil || len(readers) == 0 {
		return err // without a reader, rows are kept for the first one
	}
	floor := slices.MinFunc(readers, func(a, b table.Reader) int { return cmp.Compare(a.LastID, b.LastID) }).LastID
	s.report.Floor = floor
	for _, r := range readers {
		if r.LastID == floor {
			s.report.Slowest = append(s.report.Slowest, r)
		}
	}

	if s.kept, err = referred(ctx, s.conn, readers); err != nil {
		return err
	}
	var partitioned bool
	if err := s.conn.QueryRow(ctx, partitionedSQL, s.table()).Scan(&partitioned); err != nil {
		return err
	}
	if partitioned {
		if len(s.kept) > 0 {
			s.report.Floor = min(floor, slices.Min(s.kept)-1)
		}
		return s.dropPartitions(ctx)
	}
	return s.deleteRows(ctx)
}

// referred returns the rows that dead letters of the readers refer to.
func referred(ctx context.Context, db pg.Querier, readers []table.Reader) ([]int64, error) {
	names := make([]string, len(readers))
	for i, r := range readers {
		names[i] = r.Name
	}
	return store.ReferredRows(ctx, db, names)
}

func (s *sweep) deleteRows(ctx context.Context) error {
	sql := strings.ReplaceAll(deleteSQL, "{table}", s.table())
	for {
		first, expired, err := s.firstExpired(ctx, math.MinInt64)
		if err != nil || !expired {
			return err
		}
		if first > s.report.Floor {
			s.report.HeldBack = true
			return nil
		}
		tag, err := s.conn.Exec(ctx, sql, first, s.report.Floor, first+int64(s.opts.Batch)-1, s.hours, s.kept)
		if err != nil {
			return err
		}
		s.report.Deleted += tag.RowsAffected()
		if tag.RowsAffected() == 0 {
			return nil
		}
		if err := backoff.Sleep(ctx, s.opts.Pause); err != nil {
			return err
		}
	}
}

// firstExpired returns the id of the first row with a larger id than after, and whether
// it has expired.
func (s *sweep) firstExpired(ctx context.Context, after int64) (id int64, expired bool, err error) {
	sql := `SELECT id, created_at < now() - make_interval(hours => $1) FROM ` + s.table() +
		` WHERE id > $2 AND id <> ALL ($3::bigint[]) ORDER BY id LIMIT 1`
	err = s.conn.QueryRow(ctx, sql, s.hours, after, s.kept).Scan(&id, &expired)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	return id, expired, err
}

// dropPartitions drops partitions in one transaction each. Only the table's owner may
// drop them, so a function with the owner's rights does.
func (s *sweep) dropPartitions(ctx context.Context) error {
	for {
		var part *string
		var rows int64
		const drop = `SELECT part, deleted FROM pgtrickle._relay_drop_partition($1, $2)`
		err := s.conn.QueryRow(ctx, drop, s.name, s.report.Floor).Scan(&part, &rows)
		if err != nil {
			return err
		}
		if part == nil {
			break
		}
		s.report.Dropped = append(s.report.Dropped, *part)
		s.report.Deleted += rows
	}
	var err error
	_, s.report.HeldBack, err = s.firstExpired(ctx, s.report.Floor)
	return err
}
