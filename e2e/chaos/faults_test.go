package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// oneBatch is the most messages that the engine gives to a sink at once.
const oneBatch = 4096

// TestZombie stops the owner of a pipeline past its lease, continues it when another
// process works, and then does the same to that process. No zombie may move a
// checkpoint. At most its current batch may reach the far end, which shows it if it
// drops no duplicates.
func TestZombie(t *testing.T) {
	for _, k := range set.backends {
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			zombies(t, k)
		})
	}
}

func zombies(t *testing.T, k ends.Kind) {
	const rounds = 4
	unique := []string{"nats", "sqs", "pg-inbox"} // drop a second copy themselves, from any sender
	p, db, end := newCase(t, k, "zombie")
	db.Forward(t, "out", k.Name, end.Sink(), nil)
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	gap := 15 * time.Millisecond // so that a batch is in flight most of the time
	if k.Name == "sqs" {
		gap = 250 * time.Millisecond // the stand-in takes less the more its queue holds
	}
	var writing, watching sync.WaitGroup
	for _, f := range newFlows(set.seed, "zombie") {
		writing.Go(func() {
			for stop.Err() == nil {
				if err := db.Insert(context.WithoutCancel(stop), f.next()); err != nil {
					t.Error(err)
					return
				}
				pause(stop, gap)
			}
		})
	}
	var back error
	watching.Go(func() { back = watchCursor(stop, db) })

	crew := newCrew(t, p, db, 2)
	var slowest time.Duration
	for range rounds {
		from, last, err := cursor(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		db.Until(t, "the owner delivers", func(ctx context.Context) (bool, error) {
			_, now, err := cursor(ctx, db)
			return now > last, err
		})
		owner := crew.owner(t)
		if err := owner.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if from, last, err = cursor(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		db.Until(t, "another one takes over", func(ctx context.Context) (bool, error) {
			epoch, now, err := cursor(ctx, db)
			return epoch > from && now > last, err
		})
		slowest = max(slowest, time.Since(began))
		if err := owner.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		pause(t.Context(), 2*time.Second) // for it to do what it should not, or to win the pipeline back
	}
	cancel()
	writing.Wait()
	l := forwarded(t, db, end)
	watching.Wait()
	err := errors.Join(back, l.Err(false))
	if l.Duplicated > rounds*oneBatch || slices.Contains(unique, k.Name) && l.Duplicated > 0 {
		err = errors.Join(err, fmt.Errorf("%d duplicates of %d zombies: %s", l.Duplicated, rounds, l))
	}
	if err != nil {
		t.Error(err)
	}
	table.add(line{"zombie", k.Name, "forward", l, fmt.Sprintf("%d× owner stopped with SIGSTOP, continued when another had taken over, after %.1f s at most", rounds, slowest.Seconds()), err == nil})
}

// owner returns the relay that has the crew's only pipeline.
func (c *crew) owner(t *testing.T) (owner *rig.Relay) {
	t.Helper()
	c.db.Until(t, "one relay says that it owns the pipeline", func(ctx context.Context) (bool, error) {
		for _, r := range c.relays {
			if h, err := r.Health(ctx); err == nil && h.PipelinesOwned == 1 {
				owner = r
			}
		}
		return owner != nil, nil
	})
	return owner
}

// watchCursor looks at a pipeline's checkpoint until stop is done, and returns an
// error when it ever goes back.
func watchCursor(stop context.Context, db *rig.Database) error {
	var epoch, last int64
	for stop.Err() == nil {
		e, l, err := cursor(context.WithoutCancel(stop), db)
		if err == nil && (e < epoch || l < last) {
			return fmt.Errorf("the checkpoint went back: epoch %d, row %d came after epoch %d, row %d", e, l, epoch, last)
		}
		if err == nil {
			epoch, last = e, l
		}
		pause(stop, 10*time.Millisecond)
	}
	return nil
}

func cursor(ctx context.Context, db *rig.Database) (epoch, last int64, err error) {
	err = db.Pool.QueryRow(ctx, `SELECT coalesce(max(epoch), 0), coalesce(max(last_id), 0) FROM pgtrickle.relay_cursors WHERE pipeline = 'out'`).Scan(&epoch, &last)
	return epoch, last, err
}

// TestPoison sends one message in 10,000 of 100 keys that the broker refuses.
// The messages of 99 keys are not delayed; the hundredth key is complete and in order
// after a redrive.
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
	db.Until(t, "the poisoned key is parked", func(ctx context.Context) (bool, error) {
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
	db.Until(t, "the new limit is in force", func(ctx context.Context) (bool, error) {
		now, _, err := cursor(ctx, db)
		return now > epoch, err
	})
	db.Exec(t, `SELECT pgtrickle.relay_dlq_retry('out')`)
	db.Until(t, "the dead letters are gone", func(ctx context.Context) (done bool, err error) {
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
	db.Until(t, "the first rows are confirmed", func(ctx context.Context) (bool, error) { return db.Forwarded(ctx, "out") })
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
	db.Until(t, "the first new rows are confirmed", func(ctx context.Context) (bool, error) {
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
	var deadLetters int
	if err := db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.relay_dead_letters`).Scan(&deadLetters); err != nil || deadLetters > 0 {
		t.Errorf("%d dead letters, %v", deadLetters, err)
	}
	table.add(line{"broker down", k.Name, "forward", l, fmt.Sprintf("broker away for %v; %d dead letters; peak memory %d MiB; first checkpoint %.1f s after its return",
		away, deadLetters, peak>>20, first.Seconds()), err == nil && deadLetters == 0})
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

// TestMemory lets images recover a backlog of large messages, and one of many
// small ones, inside a hard limit of 64 MiB.
func TestMemory(t *testing.T) {
	for _, tc := range []struct {
		name     string
		backends []string
		fill     func(t *testing.T, db *rig.Database) int
	}{
		{"1 MiB messages", []string{"nats"}, func(t *testing.T, db *rig.Database) int {
			const n = 150
			for i := range n {
				db.Exec(t, `INSERT INTO events VALUES ($1, 'large', $1, repeat('x', 1 << 20))`, i)
			}
			return n
		}},
		{"small messages", []string{"nats", "kafka", "redis", "pg-inbox"}, func(t *testing.T, db *rig.Database) int {
			const chunk = 1000
			for i := 0; i < set.backlog; i += chunk {
				db.Exec(t, `INSERT INTO events SELECT i, 'k' || i % 100, i / 100, 'small' FROM generate_series($1::bigint, $1 + $2 - 1) i`, i, chunk)
			}
			return set.backlog
		}},
	} {
		for _, name := range tc.backends {
			t.Run(tc.name+" "+name, func(t *testing.T) {
				k := kind(t, name)
				_, db, end := newCase(t, k, "memory_"+strings.ReplaceAll(strings.ToLower(tc.name), " ", "_"))
				db.Forward(t, "out", k.Name, end.Sink(), nil)
				n := tc.fill(t, db)
				began := time.Now()
				relay := rig.Image(k.Binary).Start(t, db.URL, rig.Options{Limit: "64m"})
				db.Until(t, "everything confirmed", func(ctx context.Context) (bool, error) {
					if gone, err := relay.Exited(); gone {
						t.Fatalf("the relay ended: %v", err) // 137 is the kernel's doing
					}
					return db.Forwarded(ctx, "out")
				})
				took := time.Since(began)
				l := forwarded(t, db, end)
				err := l.Err(k.Exact)
				if err != nil {
					t.Error(err)
				}
				table.add(line{"64 MiB limit", k.Name, "forward", l, fmt.Sprintf("%d %s recovered in %.1f s", n, tc.name, took.Seconds()), err == nil})
			})
		}
	}
}
