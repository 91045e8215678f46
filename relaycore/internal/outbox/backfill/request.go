package backfill

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// request is what relay_snapshot or relay_snapshot_cancel asks of a pipeline. Ids only rise,
// and the checkpoint has the last one that was served. So a request is served once, and a
// run goes on if its row was finished by then.
type request struct {
	id      int64
	cancels bool
	rows    *int64 // that the condition selected; nil = there was none
}

// Requests are the newest requests that are not finished, by pipeline.
type Requests map[string]request

// Pending returns the requests of all pipelines.
func Pending(ctx context.Context, q pg.Querier) (Requests, error) {
	rows, _ := q.Query(ctx, `SELECT DISTINCT ON (pipeline) pipeline, id, cancels, rows FROM pgtrickle.relay_snapshot_requests
		WHERE finished_at IS NULL ORDER BY pipeline, id DESC`) // ForEachRow returns its error
	found := make(Requests)
	var pipeline string
	var r request
	_, err := pgx.ForEachRow(rows, []any{&pipeline, &r.id, &r.cancels, &r.rows}, func() error {
		found[pipeline] = r
		return nil
	})
	if err != nil && !pg.IsMissing(err) {
		return nil, fmt.Errorf("look for requested snapshots: %w", err)
	}
	return found, nil
}

// Finish records that the requests for a pipeline up to id are served, with why one was
// refused, and drops their keys. It must not be called before a checkpoint has id.
func Finish(ctx context.Context, q pg.Querier, pipeline string, id int64, why error) error {
	var text any
	if why != nil {
		text = why.Error()
	}
	_, err := q.Exec(ctx, `WITH keys AS (
			DELETE FROM pgtrickle.relay_snapshot_keys k USING pgtrickle.relay_snapshot_requests r
			WHERE r.id = k.request AND r.pipeline = $1 AND r.id <= $2)
		UPDATE pgtrickle.relay_snapshot_requests SET finished_at = now(), error = $3
		WHERE pipeline = $1 AND id <= $2 AND finished_at IS NULL`, pipeline, id, text)
	if err != nil {
		return fmt.Errorf("finish the snapshot of %q: %w", pipeline, err)
	}
	return nil
}

// Opening is what is known of a pipeline's backfill when its outbox is opened.
type Opening struct {
	Pipeline string
	Strategy scan.Strategy
	Settings table.Settings
	Logger   *slog.Logger
	Requests Requests // without a lease none is served
	Anew     bool     // what State has read proves nothing

	State   *State // that the checkpoint has, or that startup begins; nil = none
	Served  int64  // id of the last request that was served
	Refused error  // why that one was refused
}

// Open returns the table whose rows are read, nil if there is none. It serves a request for
// a snapshot, or for its end, by changing State and Served. A request that cannot be served
// is refused, and the pipeline goes on without. If startup needs the rows, that is an error.
func (o *Opening) Open(ctx context.Context, q pg.Querier, t *table.Table) (*Table, error) {
	if o.State != nil && o.Anew {
		o.State = o.State.again(time.Now())
	}
	if r, ok := o.Requests[o.Pipeline]; ok && r.id > o.Served {
		o.serve(r)
	}
	if o.State == nil {
		return nil, nil
	}
	b, err := o.find(ctx, q, t)
	switch {
	case err == nil:
		if o.State.After == "" && !o.State.Keyed {
			o.State.Total = b.Rows
		}
		return b, nil
	case o.State.Request == 0:
		return nil, fmt.Errorf("startup %w", err)
	case !relay.IsFatal(err):
		return nil, err
	}
	o.Logger.Error("snapshot was refused", "request", o.State.Request, "err", err)
	o.State, o.Served, o.Refused = nil, o.State.Request, err
	return nil, nil
}

// serve takes up the newest request.
func (o *Opening) serve(r request) {
	switch {
	case o.State != nil && o.State.Request == r.id:
	case r.cancels:
		rows := int64(0)
		if o.State != nil {
			rows = o.State.Rows
		}
		o.Logger.Info("snapshot was cancelled", "request", r.id, "rows", rows)
		o.State, o.Served = nil, r.id
	case o.State != nil && o.State.Request == 0: // startup sends all rows
		o.State.Request = r.id
	default:
		o.State = Begin(time.Now())
		o.State.Request, o.State.Keyed = r.id, r.rows != nil
		if r.rows != nil {
			o.State.Total = *r.rows
		}
		o.Logger.Info("snapshot of table begins", "request", r.id, "run", o.State.Run, "rows", o.State.Total)
	}
}

func (o *Opening) find(ctx context.Context, q pg.Querier, t *table.Table) (*Table, error) {
	if o.Strategy != scan.Window {
		if err := scan.Window.Check(ctx, q, t, o.Settings, o.Logger); err != nil {
			return nil, relay.Fatal(fmt.Errorf("snapshot needs snapshot windows: %w", err))
		}
		return nil, relay.Fatal(errors.New("snapshot needs snapshot windows: set outbox_strategy to auto"))
	}
	return find(ctx, q, t, o.State.Keyed)
}
