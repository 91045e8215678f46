package chaos

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// TestZombie stops the owner of a pipeline past its lease and lets it go on when
// another one works: it may move no checkpoint, and at most the batch that it had
// in hand may reach the broker, here one that drops no duplicates.
func TestZombie(t *testing.T) {
	const batch = 100
	k := kind(t, "rabbitmq")
	p, db, end := newCase(t, k, "zombie")
	db.Forward(t, "out", k.Name, end.Sink(), map[string]any{"batch_size": batch})
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { insertAll(stop, db, newFlows(set.seed, "zombie")) })

	first := p.Start(t, db.URL, rig.Options{})
	rig.Until(t, patience, "the first relay delivers", func(ctx context.Context) (bool, error) {
		_, last, err := cursor(ctx, db)
		return last > 0, err
	})
	if err := first.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	epoch, last, err := cursor(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p.Start(t, db.URL, rig.Options{})
	rig.Until(t, patience, "the second relay takes over", func(ctx context.Context) (bool, error) {
		e, l, err := cursor(ctx, db)
		return e > epoch && l > last, err
	})
	takeover := time.Since(began)
	// From here on the checkpoint is watched: the zombie must not touch it.
	var back error
	wg.Go(func() {
		var epoch, last int64
		for stop.Err() == nil && back == nil {
			e, l, err := cursor(context.WithoutCancel(stop), db)
			if err == nil && (e < epoch || l < last) {
				back = fmt.Errorf("epoch %d, row %d came after epoch %d, row %d", e, l, epoch, last)
			}
			epoch, last = e, l
			pause(stop, 10*time.Millisecond)
		}
	})
	if err := first.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	pause(t.Context(), 5*time.Second)
	cancel()
	wg.Wait()
	if back != nil {
		t.Error("the checkpoint went back:", back)
	}
	l := forwarded(t, db, end)
	err = l.Err(false)
	if err == nil && l.Duplicated > batch {
		err = fmt.Errorf("%d duplicates are more than a batch of %d", l.Duplicated, batch)
	}
	if err != nil {
		t.Error(err)
	}
	table.add(line{"zombie", k.Name, "forward", l, fmt.Sprintf("owner stopped with SIGSTOP; another took over after %.1f s; then continued", takeover.Seconds()), err == nil && back == nil})
}

func cursor(ctx context.Context, db *rig.Database) (epoch, last int64, err error) {
	err = db.Pool.QueryRow(ctx, `SELECT coalesce(max(epoch), 0), coalesce(max(last_id), 0) FROM pgtrickle.relay_cursors WHERE pipeline = 'out'`).Scan(&epoch, &last)
	return epoch, last, err
}

// TestPoison sends one message in 10,000 of 100 keys that the broker refuses: 99
// keys do not notice, and the hundredth is whole and in order after a redrive.
func TestPoison(t *testing.T) {
	const total, keys, at = 10_000, 100, 5_050
	k := kind(t, "kafka")
	p, db, end := newCase(t, k, "poison")
	sink := end.Sink()
	sink["max_message_bytes"] = 100_000
	db.Forward(t, "out", k.Name, sink, nil)
	relay := p.Start(t, db.URL, rig.Options{})
	events := make([]rig.Event, total)
	for i := range events {
		events[i] = rig.Event{ID: int64(i), K: fmt.Sprint("key-", i%keys), Seq: int64(i / keys), Note: "good"}
	}
	events[at].Note = strings.Repeat("poison ", 30_000)
	for i := 0; i < total; i += 500 {
		if err := db.Insert(t.Context(), events[i:i+500]); err != nil {
			t.Fatal(err)
		}
	}
	// Those of the poisoned key from there on wait as dead letters.
	held := (total-1-at%keys)/keys - at/keys + 1
	rig.Until(t, patience, "the poisoned key is parked", func(ctx context.Context) (bool, error) {
		var dead, parked int
		err := db.Pool.QueryRow(ctx, `SELECT count(*) FILTER (WHERE status = 'dead'), count(*) FILTER (WHERE status = 'parked') FROM pgtrickle.relay_dead_letters`).Scan(&dead, &parked)
		if err == nil && (dead != 1 || parked != held-1) {
			err = fmt.Errorf("%d dead and %d parked, want 1 and %d", dead, parked, held-1)
		}
		return err == nil, err
	})
	arrived, err := end.Arrived(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var unaffected []rig.Event
	for _, e := range events {
		if e.K != events[at].K || e.ID < events[at].ID {
			unaffected = append(unaffected, e)
		}
	}
	if err := rig.Compare(unaffected, arrived).Err(true); err != nil {
		t.Errorf("before the redrive: %v", err)
	}
	// The operator raises the limit and lets the dead letter go.
	epoch, _, err := cursor(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	delete(sink, "max_message_bytes")
	db.Forward(t, "out", k.Name, sink, nil)
	rig.Until(t, patience, "the new limit is in force", func(ctx context.Context) (bool, error) {
		now, _, err := cursor(ctx, db)
		return now > epoch, err
	})
	db.Exec(t, `SELECT pgtrickle.relay_dlq_retry('out')`)
	rig.Until(t, patience, "the dead letters are gone", func(ctx context.Context) (done bool, err error) {
		err = db.Pool.QueryRow(ctx, `SELECT count(*) = 0 FROM pgtrickle.relay_dead_letters`).Scan(&done)
		return done, err
	})
	l := forwarded(t, db, end)
	if err = l.Err(true); err != nil {
		t.Error(err)
	}
	if gone, err := relay.Exited(); gone {
		t.Errorf("the relay ended: %v", err)
	}
	table.add(line{"poison", k.Name, "forward", l, fmt.Sprintf("1 message refused, %d of its key held behind it, then redriven", held-1), err == nil})
}

// TestBrokerDown keeps the broker away while rows are written: no dead letter,
// bounded memory, and full speed within a second of its return.
func TestBrokerDown(t *testing.T) {
	k := kind(t, "nats")
	p, db, end := newCase(t, k, "down")
	db.Forward(t, "out", k.Name, end.Sink(), nil)
	relay := p.Start(t, db.URL, rig.Options{})
	flows := newFlows(set.seed, "down")
	write := func(n int) {
		for i := range n {
			if err := db.Insert(t.Context(), flows[i%writers].next()); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(100)
	rig.Until(t, patience, "the first rows are confirmed", func(ctx context.Context) (bool, error) { return db.Forwarded(ctx, "out") })
	server := fleet.Server(k.Server)
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	away := min(set.duration, 5*time.Minute)
	for until := time.Now().Add(away); time.Now().Before(until); {
		write(50)
	}
	// A megabyte a row, more of them than may be in flight.
	for i := range 40 {
		e := rig.Event{ID: int64(-1 - i), K: fmt.Sprint("large-", i), Note: strings.Repeat("x", 1<<20)}
		if err := db.Insert(t.Context(), []rig.Event{e}); err != nil {
			t.Fatal(err)
		}
	}
	pause(t.Context(), 2*time.Second)
	peak := memory(t, relay, "VmHWM")
	if peak > 160<<20 {
		t.Errorf("the relay took %d MiB while the broker was away", peak>>20)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	_, before, err := cursor(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	rig.Until(t, patience, "the first new rows are confirmed", func(ctx context.Context) (bool, error) {
		_, last, err := cursor(ctx, db)
		return last > before, err
	})
	first := time.Since(back)
	// A retry is at most a second apart, and the client has to connect again; the
	// rest is for a busy machine.
	if first > 5*time.Second {
		t.Errorf("the first row was confirmed %v after the broker's return", first)
	}
	l := forwarded(t, db, end)
	err = l.Err(true)
	if err != nil {
		t.Error(err)
	}
	var letters int
	if err := db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.relay_dead_letters`).Scan(&letters); err != nil || letters > 0 {
		t.Errorf("%d dead letters, %v", letters, err)
	}
	table.add(line{"broker down", k.Name, "forward", l, fmt.Sprintf("broker away for %v; %d dead letters; peak memory %d MiB; first checkpoint %.1f s after its return",
		away, letters, peak>>20, first.Seconds()), err == nil && letters == 0})
}

// memory reads a line of /proc/PID/status, in bytes.
func memory(t *testing.T, r *rig.Relay, what string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(what + `:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("no %s in %s", what, status)
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// TestMemory lets an image recover a backlog of large messages, and one of many
// small ones, inside a hard limit of 64 MiB.
func TestMemory(t *testing.T) {
	k := kind(t, "nats")
	for name, fill := range map[string]func(t *testing.T, db *rig.Database) int{
		"1 MiB messages": func(t *testing.T, db *rig.Database) int { //nolint:thelper // a case
			const n = 150
			for i := range n {
				db.Exec(t, `INSERT INTO events VALUES ($1, 'large', $1, repeat('x', 1 << 20))`, i)
			}
			return n
		},
		"small messages": func(t *testing.T, db *rig.Database) int { //nolint:thelper // a case
			const chunk = 1000
			for i := 0; i < set.backlog; i += chunk {
				db.Exec(t, `INSERT INTO events SELECT i, 'k' || i % 100, i / 100, 'small' FROM generate_series($1::bigint, $1 + $2 - 1) i`, i, chunk)
			}
			return set.backlog
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, db, end := newCase(t, k, "memory_"+strings.ReplaceAll(strings.ToLower(name), " ", "_"))
			db.Forward(t, "out", k.Name, end.Sink(), nil)
			n := fill(t, db)
			began := time.Now()
			relay := rig.Image(k.Binary).Start(t, db.URL, rig.Options{Limit: "64m"})
			rig.Until(t, 2*patience, "everything confirmed", func(ctx context.Context) (bool, error) {
				if gone, err := relay.Exited(); gone {
					t.Fatalf("the relay ended: %v", err) // 137 is the kernel's doing
				}
				return db.Forwarded(ctx, "out")
			})
			took := time.Since(began)
			l := forwarded(t, db, end)
			err := l.Err(true)
			if err != nil {
				t.Error(err)
			}
			table.add(line{"64 MiB limit", k.Name, "forward", l, fmt.Sprintf("%d %s recovered in %.1f s", n, name, took.Seconds()), err == nil})
		})
	}
}
