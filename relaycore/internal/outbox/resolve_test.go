package outbox_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// TestStreamTableIsFound: a table keeps its outbox, and its messages keep their key. That
// holds when the table is renamed, and when the database is restored with new oids.
func TestStreamTableIsFound(t *testing.T) {
	t.Parallel()
	const (
		two      = `CREATE SCHEMA sales; CREATE TABLE sales.orders (sale int PRIMARY KEY); SELECT pgtrickle.enable_outbox('sales.orders');`
		restored = `UPDATE pgtrickle.pgt_outbox_config SET stream_table_oid = stream_table_oid::bigint + 1000000;`
	)
	hashed := func(label string) string { return `SELECT 'outbox_orders_' || left(md5('` + label + `'), 7)` }
	for name, tc := range map[string]struct{ sql, stream, outbox, keys string }{
		"as it was":                   {``, "public.orders", `SELECT 'outbox_orders'`, "[id part]"},
		"restored":                    {restored, "public.orders", `SELECT 'outbox_orders'`, "[id part]"},
		"restored, by its outbox":     {restored, "outbox_orders", `SELECT 'outbox_orders'`, "[id part]"},
		"two restored, the one":       {two + restored, "public.orders", `SELECT 'outbox_orders'`, "[id part]"},
		"two restored, the other":     {two + restored, "sales.orders", hashed("sales.orders"), "[sale]"},
		"two restored, no schema":     {two + restored, "orders", "", "public.orders (outbox outbox_orders), sales.orders (outbox"},
		"restored and renamed":        {restored + `ALTER TABLE public.orders RENAME TO bookings`, "public.bookings", `SELECT 'outbox_orders'`, "[id part]"},
		"renamed":                     {`ALTER TABLE public.orders RENAME TO bookings`, "public.bookings", `SELECT 'outbox_orders'`, "[id part]"},
		"renamed, by its old name":    {`ALTER TABLE public.orders RENAME TO bookings`, "public.orders", `SELECT 'outbox_orders'`, "[id part]"},
		"renamed, by its outbox":      {`ALTER TABLE public.orders RENAME TO bookings`, "outbox_orders", `SELECT 'outbox_orders'`, "[id part]"},
		"moved":                       {`CREATE SCHEMA sales; ALTER TABLE public.orders SET SCHEMA sales`, "sales.orders", `SELECT 'outbox_orders'`, "[id part]"},
		"moved, by its old name":      {`CREATE SCHEMA sales; ALTER TABLE public.orders SET SCHEMA sales`, "public.orders", `SELECT 'outbox_orders'`, "[id part]"},
		"schema renamed":              {two + `ALTER SCHEMA sales RENAME TO shop`, "shop.orders", hashed("sales.orders"), "[sale]"},
		"replaced by one of its name": {`ALTER TABLE public.orders RENAME TO old; CREATE TABLE public.orders (n int PRIMARY KEY); SELECT pgtrickle.enable_outbox('public.orders')`, "public.orders", "", "public.old (outbox outbox_orders), public.orders (outbox"},
		"gone":                        {`DROP TABLE public.orders`, "public.orders", `SELECT 'outbox_orders'`, "[]"},
		"without a table":             {`SELECT pgtrickle.create_outbox('payments')`, "payments", `SELECT 'outbox_payments'`, "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			if err := migrate.Up(t.Context(), pool, nil); err != nil {
				t.Fatal(err)
			}
			exec(t, pool, `CREATE TABLE public.orders (note text, id int, part int, PRIMARY KEY (id, part)); SELECT pgtrickle.enable_outbox('public.orders')`)
			exec(t, pool, tc.sql)
			plain := pgtest.Open(t, plainRole(t, pool.Config().ConnString()))
			src, err := outbox.Open(t.Context(), plain, outbox.Config{Outbox: tc.stream, Group: "g", Pipeline: "p"})
			if tc.outbox == "" {
				if !relay.IsFatal(err) || !strings.Contains(err.Error(), tc.keys) {
					t.Fatalf("Open(%s) = %v, want a fatal error with %q", tc.stream, err, tc.keys)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := "pgtrickle." + column[string](t, pool, tc.outbox)[0]; src.Table() != want || fmt.Sprint(src.KeyColumns()) != tc.keys {
				t.Errorf("%s is %s with key %s, want %s with %s", tc.stream, src.Table(), src.KeyColumns(), want, tc.keys)
			}
		})
	}
}

// TestTableWithoutSchema: the sessions of a relay have no schema of users in their search
// path. They still find a table by its bare name.
func TestTableWithoutSchema(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, `CREATE TABLE public.events (id bigserial PRIMARY KEY, payload jsonb); CREATE SCHEMA pgtrickle; CREATE TABLE pgtrickle.events (LIKE public.events)`)
	config := pool.Config().Copy()
	config.ConnConfig.RuntimeParams["search_path"] = "pg_catalog, pg_temp"
	pinned, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pinned.Close()
	src, err := outbox.Open(t.Context(), pinned, outbox.Config{Outbox: "events"})
	if err != nil || src.Table() != "public.events" {
		t.Fatalf("Open(events) = %v, %v; want public.events", src, err)
	}
}
