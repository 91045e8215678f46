package outbox

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/pace"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

var (
	//go:embed sql/deltas.sql
	deltasSQL string
	//go:embed sql/counts.sql
	countsSQL string
)

// readClaim reads the next deltas of a claim check, as many as the memory of one read
// allows. A read that fails is repeated from where it started.
func (r *reader) readClaim(ctx context.Context, c conn, db scan.DB) error {
	claim := *r.claim
	var last bool
	var err error
	if r.state != nil && claim.Snapshot() && (claim.Inline || !r.state.Whole(claim.ID)) {
		last, err = r.readChanges(ctx, c, db, &claim)
	} else {
		last, err = r.readDeltas(ctx, c, db, &claim)
	}
	if err != nil {
		return fmt.Errorf("row %d: %w", claim.ID, err)
	}
	r.claim = &claim
	if last {
		r.claim = nil
	}
	r.pass(last)
	return nil
}

func (r *reader) readDeltas(ctx context.Context, q pg.Querier, db scan.DB, c *rows.Claim) (last bool, err error) {
	if r.delta.Name == "" {
		if r.delta, err = table.FindDelta(ctx, q, r.table); err != nil {
			return false, err
		}
	}
	deltas := r.builder.Deltas(c, r.delta.Name)
	if r.delta.Name == "" {
		deltas.Undecodable(errors.New("it is a claim check, and there is no delta table that may be read; " +
			"GRANT SELECT on outbox_delta_rows_… to pgtrickle_relay"))
		deltas.End()
		return true, nil
	}
	r.shared.claimed.Store(max(r.shared.claimed.Load(), c.ID))

	sql := strings.NewReplacer("{op}", r.delta.Op, "{data}", r.delta.Data, "{table}", r.delta.Name).Replace(deltasSQL)
	want, n, cut, fresh := r.pace.ClaimRows, 0, false, c.Next == table.Beginning
	args := []string{strconv.FormatInt(c.ID, 10), strconv.FormatInt(c.Next, 10), strconv.Itoa(want)}
	err = db.Query(ctx, sql, nil, args, func(v [][]byte) (bool, error) {
		num, err := rows.ParseID(v[0])
		if err != nil {
			return false, err
		}
		n++
		deltas.Add(num, v[1], v[2])
		cut = r.builder.Bytes() >= r.cfg.ReadBytes
		return !cut, nil
	})
	if err != nil {
		return false, fmt.Errorf("read its deltas: %w", err)
	}
	if n > 0 {
		r.pace.ClaimRows = pace.Fitting(r.cfg.ReadBytes, r.builder.Bytes(), n)
	}
	if n == want || cut {
		return false, nil
	}
	if fresh && n == 0 {
		if err := r.checkMissing(ctx, q, c, deltas); err != nil {
			return false, err
		}
	}
	deltas.End()
	return true, nil
}

// checkMissing adds an error if a claim check of changes has no deltas. A snapshot may
// have none: the stream table is empty, or a later snapshot supersedes it.
func (r *reader) checkMissing(ctx context.Context, q pg.Querier, c *rows.Claim, deltas *rows.Deltas) error {
	t := r.table
	if t.Type("inserted_count") == "" || t.Type("deleted_count") == "" {
		return nil
	}
	var inserted, deleted int64
	var superseded bool
	sql := strings.NewReplacer("{id}", t.ID(), "{table}", t.Qualified()).Replace(countsSQL)
	err := q.QueryRow(ctx, sql, c.ID, c.Snapshot()).Scan(&inserted, &deleted, &superseded)
	if err != nil {
		return fmt.Errorf("read its counts: %w", err)
	}
	switch n := inserted + deleted; {
	case n == 0 || c.Snapshot() && inserted == 0:
	case superseded:
		r.cfg.Logger.Info("superseded claim check skipped", "table", t.Qualified(), "outbox_id", c.ID)
	default:
		deltas.Undecodable(fmt.Errorf("it is a claim check for %d changes, and %s has none of them: "+
			"they were consumed by another reader, or the refresh failed to write them", n, r.delta.Name))
	}
	return nil
}
