package outbox_test

import (
	"fmt"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// TestReaders lists the readers of the outbox of public.orders, for a pipeline p with a
// configuration and cursors. There are outboxes of public.invoices
// and of two tables called items, too.
func TestReaders(t *testing.T) {
	t.Parallel()
	const (
		orders   = `{"stream_table": "public.orders", "sink_type": "stdout"}`
		invoices = `{"stream_table": "public.invoices", "sink_type": "stdout"}`
		env      = `{"stream_table": "${env:OUTBOX}", "sink_type": "stdout"}`
		file     = `{"stream_table": "public.${file:/etc/table}", "sink_type": "stdout"}`
		nobody   = `{"stream_table": "public.nobody", "sink_type": "stdout"}`
		items    = `{"stream_table": "items", "sink_type": "stdout"}`

		ofOrders   = `'pgtrickle.outbox_orders'`
		ofInvoices = `'pgtrickle.outbox_invoices'`
	)
	cursor := func(group, source string, epoch, id int) string {
		return fmt.Sprintf(`INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, source, epoch, last_id) VALUES ('%s', 'forward', 'p', %s, %d, %d);`, group, source, epoch, id)
	}
	pool := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `CREATE SCHEMA sales; CREATE TABLE public.orders (id int); CREATE TABLE public.invoices (id int); CREATE TABLE public.items (id int); CREATE TABLE sales.items (id int);
		SELECT pgtrickle.enable_outbox(t) FROM unnest(ARRAY['public.orders', 'public.invoices', 'public.items', 'sales.items']) t;
		`+cursor("a", ofOrders, 1, 1)+`UPDATE pgtrickle.relay_cursors SET pipeline = 'deleted'`)
	for name, tc := range map[string]struct{ config, cursors, want string }{
		"never run":                  {orders, "", "[p in group any at 0]"},
		"of another":                 {invoices, "", "[]"},
		"in groups":                  {orders, cursor("a", ofOrders, 1, 5) + cursor("b", ofOrders, 1, 3), "[p in group a at 5 p in group b at 3]"},
		"taken over":                 {orders, `INSERT INTO pgtrickle.relay_consumer_offsets (relay_group_id, pipeline_id, last_change_id) VALUES ('a', 'p', 7)`, "[p in group a at 7]"},
		"started and at nothing yet": {orders, cursor("a", "NULL", 1, 0), "[p in group a at 0]"},
		"nested":                     {`{"source": {"outbox": "orders"}, "sink": {"type": "stdout"}}`, "", "[p in group any at 0]"},
		"in the far object":          {`{"sink": {"type": "nats", "url": "nats://n", "stream_table": "public.orders"}}`, "", "[p in group any at 0]"},
		"so by its alias":            {`{"sink": {"type": "nats", "url": "nats://n", "outbox": "public.orders"}}`, "", "[p in group any at 0]"},

		"env, never run":           {env, "", "[p in group any at 0]"},
		"env, here":                {env, cursor("a", ofOrders, 1, 5), "[p in group a at 5]"},
		"env, elsewhere":           {env, cursor("a", ofInvoices, 1, 5), "[]"},
		"env, one each":            {env, cursor("a", ofInvoices, 1, 9) + cursor("b", ofOrders, 1, 5), "[p in group b at 5]"},
		"env, started":             {env, cursor("a", ofInvoices, 1, 9) + cursor("b", "NULL", 1, 0), "[p in group b at 0]"},
		"env, not set anywhere":    {env, cursor("a", "NULL", 0, 0), "[p in group any at 0]"},
		"env, not set in a group":  {env, cursor("a", ofInvoices, 1, 9) + cursor("b", "NULL", 0, 0), "[]"},
		"file, never run":          {file, "", "[p in group any at 0]"},
		"file, here":               {file, cursor("a", ofOrders, 1, 5), "[p in group a at 5]"},
		"no outbox, never run":     {nobody, "", "[]"},
		"no outbox, was here":      {nobody, cursor("a", ofOrders, 1, 5), "[p in group a at 5]"},
		"several, of which no one": {items, "", "[]"},
		"several, was here":        {items, cursor("a", ofOrders, 1, 5), "[p in group a at 5]"},

		"pointed elsewhere, not there yet": {invoices, cursor("a", ofOrders, 1, 5), "[p in group a at 5]"},
		"pointed elsewhere, and there":     {invoices, cursor("a", ofInvoices, 1, 1), "[]"},
		"pointed here, not here yet":       {orders, cursor("a", ofInvoices, 1, 9), "[p in group a at 0]"},
		"pointed here, one group is":       {orders, cursor("a", ofOrders, 1, 5) + cursor("b", ofInvoices, 1, 9), "[p in group a at 5 p in group b at 0]"},
	} {
		t.Run(name, func(t *testing.T) {
			tx := begin(t, pool)
			in(t, tx, fmt.Sprintf(`INSERT INTO pgtrickle.relay_outbox_config (name, enabled, config) VALUES ('p', false, '%s'); %s`, tc.config, tc.cursors))
			_, got, err := table.Readers(t.Context(), tx, "public.orders")
			if err != nil || fmt.Sprint(got) != tc.want {
				t.Errorf("Readers = %v, %v, want %s", got, err, tc.want)
			}
			_ = tx.Rollback(t.Context())
		})
	}
}

// TestReadersOfAnAmbiguousName: a second table has got the name of a pipeline's table. That
// stops the pipeline until an operator decides between them.
func TestReadersOfAnAmbiguousName(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `CREATE TABLE public.orders (id int); SELECT pgtrickle.enable_outbox('public.orders');
		INSERT INTO pgtrickle.relay_outbox_config (name, config) SELECT n, '{"stream_table": "orders", "sink_type": "stdout"}' FROM unnest(ARRAY['new', 'runs']) n;
		INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, source, epoch, last_id) VALUES ('a', 'forward', 'runs', 'pgtrickle.outbox_orders', 1, 5);
		CREATE SCHEMA sales; CREATE TABLE sales.orders (id int); SELECT pgtrickle.enable_outbox('sales.orders')`)
	for name, want := range map[string]string{
		"public.orders": "[new in group any at 0 runs in group a at 5]",
		"sales.orders":  "[new in group any at 0]",
	} {
		if _, got, err := table.Readers(t.Context(), pool, name); err != nil || fmt.Sprint(got) != want {
			t.Errorf("Readers(%s) = %v, %v, want %s", name, got, err, want)
		}
	}
}
