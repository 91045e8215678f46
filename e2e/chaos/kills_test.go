package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// TestKills kills a forward pipeline again and again, CHAOS_KILLS times, into
// each far end where not one duplicate may arrive.
func TestKills(t *testing.T) {
	for _, k := range set.backends {
		if !slices.Contains([]string{"nats", "kafka", "redis", "stdout", "pg-inbox"}, k.Name) {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			p, db, end := newCase(t, k, "kills")
			db.Forward(t, "out", k.Name, end.Sink(), nil)
			stop, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { insertAll(stop, db, newFlows(set.seed, k.Name)) })
			rng := rand.New(rand.NewPCG(set.seed, 1))
			var owners, working int
			for range set.kills {
				epoch, last, err := cursor(t.Context(), db)
				if err != nil {
					t.Fatal(err)
				}
				relay := p.Start(t, db.URL, rig.Options{})
				// Some kills strike a relay that is starting, some an owner that may be
				// reading the far end back, and most one at work.
				switch least := rng.IntN(5); {
				case least > 1:
					db.Until(t, "the relay delivers", func(ctx context.Context) (bool, error) {
						e, l, err := cursor(ctx, db)
						return e > epoch && l > last, err
					})
				case least > 0:
					db.Until(t, "the relay takes over", func(ctx context.Context) (bool, error) {
						e, _, err := cursor(ctx, db)
						return e > epoch, err
					})
				}
				pause(t.Context(), time.Duration(rng.IntN(300))*time.Millisecond)
				relay.Kill()
				e, l, err := cursor(t.Context(), db)
				if err != nil {
					t.Fatal(err)
				}
				owners += int(e - epoch)
				working += min(1, int(l-last))
			}
			p.Start(t, db.URL, rig.Options{})
			cancel()
			wg.Wait()
			l := forwarded(t, db, end)
			err := l.Err(true)
			if err != nil {
				t.Error(err)
			}
			table.add(line{"kills", k.Name, "forward", l, fmt.Sprintf("%d× relay killed, %d of them as the owner, %d after it had delivered", set.kills, owners, working), err == nil})
		})
	}
}

// newCase makes a database and a far end of the test's own.
func newCase(t *testing.T, k ends.Kind, what string) (rig.Program, *rig.Database, ends.End) {
	t.Helper()
	p, err := rig.Binary(k.Binary)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.ReplaceAll(what+"_"+k.Name, "-", "_")
	db := rig.NewDatabase(t, fleet.Server("pg18").URL, name, p.Migrate)
	env := ends.Env{Name: name, Dir: t.TempDir(), Migrate: p.Migrate}
	if k.Server != "" {
		env.Server = fleet.Server(k.Server)
	}
	end, err := k.New(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end.Close)
	return p, db, end
}

// forwarded waits until everything is confirmed, and compares.
func forwarded(t *testing.T, db *rig.Database, end ends.End) rig.Ledger {
	t.Helper()
	db.Until(t, "everything confirmed", func(ctx context.Context) (bool, error) { return db.Forwarded(ctx, "out") })
	written, err := db.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	arrived, err := end.Arrived(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return rig.Compare(written, arrived)
}

// kind returns a backend by name and skips the test where it is not asked for.
func kind(t *testing.T, name string) ends.Kind {
	t.Helper()
	i := slices.IndexFunc(set.backends, func(k ends.Kind) bool { return k.Name == name })
	if i < 0 {
		t.Skipf("CHAOS_BACKENDS leaves out %s", name)
	}
	return set.backends[i]
}
