package capture_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/capture"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// TestWatch: a table that is dropped and created is reported with the cure, once, and no
// longer when it is cured. The next table of its name is reported as well, even if no look
// came between.
func TestWatch(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	pool := pgtest.Pool(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	if found, err := capture.Problems(ctx, pool, ""); err != nil || found != nil {
		t.Errorf("without a catalog: %v, %v, want none", found, err)
	}
	if err := migrate.Up(ctx, pool, nil); err != nil {
		t.Fatal(err)
	}
	exec(`CREATE TABLE kept (id int); SELECT pgtrickle.enable_outbox('kept');
		CREATE TABLE orders (id int); SELECT pgtrickle.enable_outbox('orders'); DROP TABLE orders; CREATE TABLE orders (id int)`)

	var log relaytest.Log
	reports := make(chan map[string]int, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		capture.Watch(ctx, pool, log.Logger(), 5*time.Millisecond, func(n map[string]int) {
			select {
			case reports <- n:
			default:
			}
		})
	}()
	want := `problem="public.orders has no trigger that records its changes" cure="SELECT pgtrickle.outbox_upgrade('outbox_orders')"`
	for tables := 1; tables <= 2; tables++ {
		for range 3 {
			if n := <-reports; len(n) != 1 || n["outbox_orders"] == 0 {
				t.Fatalf("reported %v, want outbox_orders alone", n)
			}
		}
		if got := log.String(); strings.Count(got, want) != tables {
			t.Errorf("the log is\n%s\nwant %d lines with\n%s", got, tables, want)
		}
		exec(`SELECT pgtrickle.outbox_upgrade('outbox_orders'); DROP TABLE orders; CREATE TABLE orders (id int)`)
		for len(reports) > 0 { // from looks before that
			<-reports
		}
	}

	exec(`SELECT pgtrickle.outbox_upgrade('outbox_orders')`)
	deadline := time.After(10 * time.Second)
	for n := range reports {
		if len(n) == 0 {
			break
		}
		select {
		case <-deadline:
			t.Fatalf("reported %v after the cure", n)
		default:
		}
	}
	cancel()
	<-done
}
