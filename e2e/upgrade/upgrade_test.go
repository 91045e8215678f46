package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

func TestMain(m *testing.M) {
	if os.Getenv("RELAY_UPGRADE_FROM") == "" {
		fmt.Println("not run: make upgrade builds the older relay and runs these tests (RELAY_UPGRADE_FROM=FILE)")
		return
	}
	os.Exit(m.Run())
}

const patience = time.Minute

// TestUpgrade replaces an older fleet under writers, one process after the other, with
// kill -9. It goes back once before the last older process has ended. Two streams of NATS
// and an inbox have each row once. Rows up to the boundary have ids of the old form, and
// rows above it those of the new one.
func TestUpgrade(t *testing.T) {
	f := newFleet(t)
	stop := f.write(t)
	f.settle(t, "the older fleet")

	if err := f.present.Migrate(t.Context(), f.db.URL); err != nil {
		t.Fatal(err)
	}
	f.replace(t, 0, f.present)
	f.settle(t, "a mixed fleet")
	f.replace(t, 0, f.present) // kill -9 of a present one beside an older one
	f.replace(t, 1, f.older)   // and the other way round
	f.settle(t, "a mixed fleet after kill -9")
	if n := f.boundaries(t); n != 0 {
		t.Fatalf("%d outboxes have a boundary while an older relay runs", n)
	}
	if out, err := f.finish(t); err == nil || !strings.Contains(out, "1 older relays run") {
		t.Errorf("migrate --finish beside an older relay: %v, %s", err, out)
	}

	f.replace(t, 0, f.older) // back
	f.settle(t, "the older fleet again")
	f.replace(t, 1, f.present)
	f.settle(t, "the other one is replaced")
	f.replace(t, 0, f.present)
	if out, err := f.finish(t); err != nil || !strings.Contains(out, "pgtrickle.outbox_events: rows up to id ") {
		t.Errorf("migrate --finish: %v, %s", err, out)
	}
	f.settle(t, "the present fleet")
	for i := range f.relays { // all readers know of the boundary
		f.replace(t, i, f.present)
	}
	f.settle(t, "the present fleet after kill -9")
	stop()
	f.judge(t)
}

// fleet is two relays that share three pipelines of one outbox.
type fleet struct {
	older, present rig.Program
	db             *rig.Database
	relays         [2]*rig.Relay
	ends           map[string]ends.End // by pipeline
	written        atomic.Int64        // id of the last event that a writer began
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	ctx := t.Context()
	servers, err := brokers.New(ctx, brokers.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := servers.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	if err := servers.Start(ctx, "pg18", "pgold", "nats"); err != nil {
		t.Fatal(err)
	}
	f := &fleet{older: rig.Program{Path: os.Getenv("RELAY_UPGRADE_FROM")}, ends: make(map[string]ends.End)}
	if f.present, err = rig.Binary("pgtrickle-relay"); err != nil {
		t.Fatal(err)
	}
	f.db = rig.NewDatabase(t, servers.Server("pg18").URL, "e2e_upgrade", f.older.Migrate)
	for _, k := range ends.Kinds() {
		pipelines := map[string]int{"nats": 2, "pg-inbox": 1}[k.Name]
		for i := range pipelines {
			name := fmt.Sprintf("e2e_upgrade_%s_%d", strings.ReplaceAll(k.Name, "-", "_"), i)
			end, err := k.New(ctx, ends.Env{Name: name, Server: servers.Server(k.Server), Migrate: f.present.Migrate})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(end.Close)
			f.db.Forward(t, name, k.Name, end.Sink(), nil)
			f.ends[name] = end
		}
	}
	for i := range f.relays {
		f.relays[i] = f.older.Start(t, f.db.URL, rig.Options{})
	}
	return f
}

// write commits events from four writers until stop is called.
func (f *fleet) write(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for seq := int64(0); ctx.Err() == nil; seq++ {
				e := rig.Event{ID: f.written.Add(1), K: fmt.Sprintf("%d-%d", w, seq%20), Seq: seq, Note: "upgrade"}
				if err := f.db.Insert(context.WithoutCancel(ctx), []rig.Event{e}); err != nil {
					t.Errorf("write event %d: %v", e.ID, err)
					return
				}
				time.Sleep(4 * time.Millisecond)
			}
		})
	}
	return func() { cancel(); writers.Wait() }
}

// replace kills a relay with SIGKILL and starts another in its place.
func (f *fleet) replace(t *testing.T, i int, by rig.Program) {
	t.Helper()
	f.relays[i].Kill()
	f.relays[i] = by.Start(t, f.db.URL, rig.Options{})
}

// settle waits two seconds, in which each relay looks at the boundary. Then it waits until
// every pipeline has delivered what was written by then.
func (f *fleet) settle(t *testing.T, what string) {
	t.Helper()
	time.Sleep(2 * time.Second)
	var top int64
	if err := f.db.Pool.QueryRow(t.Context(), `SELECT max(id) FROM pgtrickle.outbox_events`).Scan(&top); err != nil {
		t.Fatal(err)
	}
	rig.Until(t, patience, what, func(ctx context.Context) (done bool, err error) {
		err = f.db.Pool.QueryRow(ctx, `SELECT count(*) = $1 FROM pgtrickle.relay_consumer_offsets WHERE last_change_id >= $2`,
			len(f.ends), top).Scan(&done)
		return done, err
	})
	t.Logf("%s: outbox row %d is delivered", what, top)
}

// boundaries counts the outboxes whose rows get ids of the new form.
func (f *fleet) boundaries(t *testing.T) (n int) {
	t.Helper()
	if err := f.db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.relay_outbox_identities`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (f *fleet) finish(t *testing.T) (out string, err error) {
	t.Helper()
	raw, err := exec.CommandContext(t.Context(), f.present.Path, "migrate", "--finish", "--postgres-url", f.db.URL).CombinedOutput()
	return string(raw), err
}

// judge compares each far end with the table.
func (f *fleet) judge(t *testing.T) {
	t.Helper()
	events, err := f.db.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, end := range f.ends {
		var l rig.Ledger
		old := 0
		rig.Until(t, patience, name+" has every event", func(ctx context.Context) (bool, error) {
			arrived, err := end.Arrived(ctx)
			if err != nil {
				return false, err
			}
			old = 0
			for _, r := range arrived {
				if strings.HasPrefix(r.ID, "outbox_events:") {
					old++
				}
			}
			l = rig.Compare(events, arrived)
			return l.Lost == 0, errors.New(l.String())
		})
		t.Logf("%s: %s; %d have ids of the old form", name, l, old)
		if err := l.Err(true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if old == 0 || old == l.Written {
			t.Errorf("%s: %d of %d events have ids of the old form", name, old, l.Written)
		}
	}
}
