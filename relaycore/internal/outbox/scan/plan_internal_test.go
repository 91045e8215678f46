package scan

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// TestPlans holds every query of both strategies to index scans. The planner takes the
// table for one of ten million rows, with statistics and without. The snapshot has many
// transactions in flight.
func TestPlans(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := pgtest.Pool(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(`CREATE TABLE big (id bigserial PRIMARY KEY, created_at timestamptz NOT NULL DEFAULT now(), is_claim_check bool NOT NULL DEFAULT false, refresh_id uuid, payload jsonb,
			xid xid8 NOT NULL DEFAULT pg_current_xact_id()); CREATE INDEX ON big (xid);
		INSERT INTO big (payload, xid) SELECT jsonb_build_object('v', 1, 'inserted', '[]'::jsonb), (1000000 + n)::text::xid8 FROM generate_series(1, 60000) n`)
	tab, err := table.Resolve(ctx, pool, "big", table.DefaultSettings())
	if err != nil {
		t.Fatal(err)
	}
	l := rows.NewLayout(tab)
	w, f := newWindows(tab, l, windowPosition{lo: nothing}, 0), newFence(tab, l, fencePosition{})

	var xip []string
	for n := range 800 {
		xip = append(xip, fmt.Sprint(1050000+n*7))
	}
	lo := snapshot{text: "1050000:1059990:" + strings.Join(xip, ","), xmin: 1050000, xmax: 1059990}
	hi := "1059995:1060000:"
	los, his := lo.arms(1059999)
	var holeLo, holeHi []int64
	for n := range int64(500) {
		holeLo, holeHi = append(holeLo, 100*n+7), append(holeHi, 100*n+9)
	}
	queries := map[string]struct {
		sql  string
		args []any
	}{
		"open":     {w.openSQL, []any{los, his, "0", "4096"}},
		"few":      {w.fewSQL, []any{los, his, "0", "64"}},
		"one":      {w.oneSQL, []any{"1059990", "1060000", "0", "64"}},
		"size":     {w.sizeSQL, []any{los, his, "0", hi}},
		"lowest":   {w.lowestSQL, []any{los, his}},
		"arms":     {w.armsSQL, []any{los, his, "0", hi, "4096"}},
		"walk":     {w.walkSQL, []any{"30000", hi, lo.text, "4096"}},
		"fence":    {f.readSQL, []any{array(holeLo), array(holeHi), "4096"}},
		"the tail": {f.readSQL, []any{"{59000}", "{9223372036854775807}", "4096"}},
	}
	for _, stats := range []string{"", "ANALYZE big", "UPDATE pg_class SET reltuples = 1e7, relpages = pg_relation_size(oid) / 8192 WHERE relname = 'big'"} {
		if stats != "" {
			exec(stats)
		}
		for name, q := range queries {
			tx, err := pool.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(ctx)
			if _, err := tx.Exec(ctx, tuneSQL); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(ctx, "PREPARE q AS "+q.sql); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			values := make([]string, len(q.args))
			for i, a := range q.args {
				values[i] = "'" + a.(string) + "'"
			}
			result, err := tx.Query(ctx, "EXPLAIN EXECUTE q ("+strings.Join(values, ", ")+")", pgx.QueryExecModeSimpleProtocol)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			var plan strings.Builder
			for result.Next() {
				var line string
				if err := result.Scan(&line); err != nil {
					t.Fatal(err)
				}
				plan.WriteString(line + "\n")
			}
			if err := result.Err(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if _, err := tx.Exec(ctx, "DEALLOCATE q"); err != nil {
				t.Fatal(err)
			}
			_ = tx.Rollback(ctx)
			index := "big_xid_idx"
			if name == "walk" || name == "fence" || name == "the tail" {
				index = "big_pkey"
			}
			if text := plan.String(); strings.Contains(text, "Seq Scan on big ") || strings.Contains(text, "Bitmap") || !strings.Contains(text, index) || strings.Count(text, " on big ") != strings.Count(text, index+" on big ") {
				t.Errorf("%s with statistics %q does not read by %s alone:\n%.2000s", name, stats, index, text)
			}
		}
	}
}
