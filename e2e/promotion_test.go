package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// TestPromotion kills the primary under writers and promotes its standby. The
// relay has both addresses and continues. It delivers every row of the new primary,
// even if the old primary gave the same ids to rows that the standby never got. Their
// events have other ids, so that no far end takes one for a copy of the other.
func TestPromotion(t *testing.T) {
	for name, lagging := range map[string]bool{"up to date": false, "lagging": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newPromotion(t)
			stop, cancel := context.WithCancel(t.Context())
			defer cancel()
			var writing sync.WaitGroup
			for _, o := range c.outboxes {
				for w := range 2 {
					writing.Go(func() { c.write(stop, o, w) })
				}
			}
			c.arrives(t, 300)
			if lagging {
				c.cutOff(t)
				c.arrives(t, 300)
			}
			c.promote(t)
			rig.Until(t, patience, "new rows are committed", func(context.Context) (bool, error) {
				return !slices.ContainsFunc(c.outboxes, func(o *outbox) bool { return o.promoted.Load() < 300 }), nil
			})
			cancel()
			writing.Wait()
			for _, o := range c.outboxes {
				c.judge(t, o, lagging)
			}
			rig.Until(t, patience, "the relay is healthy", func(ctx context.Context) (bool, error) {
				h, err := c.relay.Health(ctx)
				return h.Status == "healthy" && h.PipelinesOwned == len(c.outboxes), err
			})
			if gone, err := c.relay.Exited(); gone {
				t.Errorf("the relay ended: %v", err)
			}
		})
	}
}

// promotion is a primary, its standby, and a relay that reads two outboxes of it
// into files.
type promotion struct {
	primary, standby *brokers.Server
	db               *rig.Database
	relay            *rig.Relay
	outboxes         []*outbox
	began            atomic.Bool // the promotion
	ids              atomic.Int64
}

// outbox is one way to be read.
type outbox struct {
	name         string
	insert, read string // events as JSON, and those that are there
	end          ends.End
	promoted     atomic.Int64 // events committed since the promotion
}

func newPromotion(t *testing.T) *promotion {
	t.Helper()
	ctx := t.Context()
	pair, err := brokers.New(ctx, brokers.Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pair.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	if err := pair.Start(ctx, "pg18"); err != nil {
		t.Fatal(err)
	}
	c := &promotion{primary: pair.Server("pg18"), outboxes: []*outbox{
		{
			name:   "window",
			insert: `INSERT INTO events SELECT * FROM json_populate_recordset(NULL::events, $1::json)`,
			read:   `SELECT id, k, seq, note FROM events`,
		},
		{
			name:   "fence",
			insert: `INSERT INTO own (payload) SELECT value FROM json_array_elements($1::json)`,
			read:   `SELECT e.* FROM own, json_populate_record(NULL::events, payload) e`,
		},
	}}
	if c.standby, err = pair.Standby(ctx, "pg18"); err != nil {
		t.Fatal(err)
	}
	p := binary(t, "pgtrickle-relay")
	hosts := fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?target_session_attrs=read-write", c.primary.Port, c.standby.Port)
	c.db = rig.NewDatabase(t, hosts, "e2e_promotion", p.Migrate)
	c.db.Exec(t, `CREATE TABLE own (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload json NOT NULL)`)
	dir := t.TempDir()
	k := ends.Kinds()[slices.IndexFunc(ends.Kinds(), func(k ends.Kind) bool { return k.Name == "stdout" })]
	for i, o := range c.outboxes {
		if o.end, err = k.New(ctx, ends.Env{Name: o.name, Dir: dir}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(o.end.Close)
		c.db.Forward(t, o.name, k.Name, o.end.Sink(), map[string]any{"stream_table": []string{"public.events", "public.own"}[i], "outbox_strategy": o.name})
	}
	c.relay = p.Start(t, c.db.URL, rig.Options{})
	return c
}

// write commits events of keys that no other writer has, until stop is done. What
// failed is not tried again.
func (c *promotion) write(stop context.Context, o *outbox, writer int) {
	seq := make(map[string]int64)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for n := 0; stop.Err() == nil; n++ {
		events := make([]rig.Event, 1+n%4)
		for i := range events {
			k := fmt.Sprintf("%d-%d", writer, (n+i)%10)
			seq[k]++
			events[i] = rig.Event{ID: c.ids.Add(1), K: k, Seq: seq[k], Note: o.name}
		}
		raw, err := json.Marshal(events)
		if err != nil {
			panic(err) // an Event is nothing but numbers and strings
		}
		after := c.began.Load()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(stop), 5*time.Second)
		if _, err := c.db.Pool.Exec(ctx, o.insert, string(raw)); err == nil && after {
			o.promoted.Add(int64(len(events)))
		}
		cancel()
		<-tick.C
	}
}

// arrives waits until so many more events of each outbox are at the far end.
func (c *promotion) arrives(t *testing.T, more int) {
	t.Helper()
	for _, o := range c.outboxes {
		before := -1
		rig.Until(t, patience, fmt.Sprintf("%d more rows of %s", more, o.name), func(ctx context.Context) (bool, error) {
			records, err := o.end.Arrived(ctx)
			if before < 0 {
				before = len(records)
			}
			return len(records) >= before+more, err
		})
	}
}

// cutOff makes the standby miss what is committed from now on.
func (c *promotion) cutOff(t *testing.T) {
	t.Helper()
	for _, sql := range []string{`ALTER SYSTEM SET primary_conninfo = ''`, `SELECT pg_reload_conf()`} {
		c.standbyExec(t, sql)
	}
	rig.Until(t, patience, "the primary has no standby", func(ctx context.Context) (gone bool, err error) {
		err = c.db.Pool.QueryRow(ctx, `SELECT count(*) = 0 FROM pg_stat_replication`).Scan(&gone)
		return gone, err
	})
}

// promote kills the primary and makes the standby the new one at once, before the
// relay has given up what it had in hand.
func (c *promotion) promote(t *testing.T) {
	t.Helper()
	if err := c.primary.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.began.Store(true)
	last, began := c.ids.Load(), time.Now() // no later id is on the old primary
	c.standbyExec(t, `SELECT pg_promote()`)
	done := time.Now()
	for _, o := range c.outboxes {
		var first time.Duration
		rig.Until(t, patience, "first row of the new primary", func(ctx context.Context) (bool, error) {
			records, err := o.end.Arrived(ctx)
			first = time.Since(done)
			return slices.ContainsFunc(records, func(r ends.Record) bool {
				e, err := rig.Decode(r.Body)
				return err == nil && e.ID > last
			}), err
		})
		t.Logf("%s: the promotion took %v, and the first row of the new primary was delivered %v after it",
			o.name, done.Sub(began).Round(time.Millisecond), first.Round(time.Millisecond))
	}
}

func (c *promotion) standbyExec(t *testing.T, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.standby.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// judge wants every event that the new primary has at the far end, in order. The
// far end has events, too, that died with the old primary. Where the standby lagged,
// their rows' ids were handed out again, but no event's id was.
func (c *promotion) judge(t *testing.T, o *outbox, lagging bool) {
	t.Helper()
	rows, _ := c.db.Pool.Query(t.Context(), o.read)
	there, err := pgx.CollectRows(rows, pgx.RowToStructByPos[rig.Event])
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[int64]bool, len(there))
	for _, e := range there {
		known[e.ID] = true
	}
	var l rig.Ledger
	var died, again, reused int
	compare := func(ctx context.Context) (bool, error) {
		arrived, err := o.end.Arrived(ctx)
		if err != nil {
			return false, err
		}
		died, again, reused = 0, 0, 0
		dead, rows := make(map[string]bool), make(map[string]bool)
		arrived = slices.DeleteFunc(arrived, func(r ends.Record) bool {
			e, err := rig.Decode(r.Body)
			if err == nil && !known[e.ID] {
				died++
				dead[r.ID], rows[rowOf(r.ID)] = true, true
				return true
			}
			if rows[rowOf(r.ID)] {
				again++
			}
			if dead[r.ID] {
				reused++
			}
			return false
		})
		l = rig.Compare(there, arrived)
		return l.Lost == 0, fmt.Errorf("%s", l)
	}
	rig.Until(t, patience, o.name+": all rows of the new primary are delivered", compare)
	if err := l.Err(false); err != nil {
		t.Errorf("%s: %v", o.name, err)
	}
	if lagging && again == 0 {
		t.Errorf("%s: %d rows died with the old primary, and no id of theirs was used again", o.name, died)
	}
	if reused != 0 {
		t.Errorf("%s: %d events have the ids of others that died with the old primary", o.name, reused)
	}
	t.Logf("%s: %s; %d more died with the old primary, rows' ids of %d of them were used again", o.name, l, died, again)
}

// rowOf returns the row and the index of an event's id.
func rowOf(id string) string {
	_, row, _ := strings.Cut(id, ":")
	return row
}
