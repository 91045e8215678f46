package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// harm is something that can be done, undone before do returns. The rng belongs
// to the schedule, so that a seed fixes everything.
type harm struct {
	name   string
	weight int
	do     func(ctx context.Context, rng *rand.Rand) error
}

// hung ends what would never end. What takes long on a busy machine takes less.
const hung = 20 * time.Minute

// storm does harms, one at a time, until stop is done, and counts them.
func storm(t *testing.T, stop context.Context, seed uint64, calm time.Duration, harms []harm) string { //nolint:revive // stop is no ordinary context
	rng := rand.New(rand.NewPCG(seed, 0))
	var lots []harm
	for _, h := range harms {
		for range h.weight {
			lots = append(lots, h)
		}
	}
	counts := make(map[string]int)
	for {
		wait, h := calm/2+time.Duration(rng.Int64N(int64(calm))), lots[rng.IntN(len(lots))]
		if pause(stop, wait); stop.Err() != nil {
			break
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(stop), hung)
		if err := h.do(ctx, rng); err != nil {
			t.Errorf("%s: %v", h.name, err)
		}
		cancel()
		counts[h.name]++
	}
	return count(counts)
}

func count(counts map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d× %s", counts[name], name))
	}
	return strings.Join(parts, ", ")
}

// while does one thing, lets it last, and undoes it.
func while(do, undo func(context.Context) error, least, most time.Duration) func(context.Context, *rand.Rand) error {
	return func(ctx context.Context, rng *rand.Rand) error {
		last := least + time.Duration(rng.Int64N(int64(most-least)))
		if err := do(ctx); err != nil {
			return err
		}
		pause(ctx, last)
		return undo(ctx)
	}
}

// restarting is a harm that needs no dice.
func restarting(restart func(context.Context) error) func(context.Context, *rand.Rand) error {
	return func(ctx context.Context, _ *rand.Rand) error { return restart(ctx) }
}

// serverHarms are what can be done to a server.
func serverHarms(s *brokers.Server, name string) []harm {
	var harms []harm
	if !s.Forgetful() {
		harms = []harm{
			{name + " restarted", 2, restarting(s.Restart)},
			{name + " killed", 2, func(ctx context.Context, _ *rand.Rand) error { return errors.Join(s.Kill(ctx), s.Start(ctx)) }},
		}
	}
	return append(harms, []harm{
		{name + " cut off", 2, while(s.Disconnect, s.Connect, time.Second, 5*time.Second)},
		{name + " frozen", 2, while(s.Pause, s.Unpause, 500*time.Millisecond, 4*time.Second)},
	}...)
}

// crew is a number of relays of one program on one database.
type crew struct {
	t       *testing.T
	program rig.Program
	db      *rig.Database
	relays  []*rig.Relay
	all     []*rig.Relay // with those that have ended
}

func newCrew(t *testing.T, p rig.Program, db *rig.Database, size int) *crew {
	c := &crew{t: t, program: p, db: db}
	c.relays = make([]*rig.Relay, size)
	for i := range c.relays {
		c.start(i)
	}
	return c
}

// start starts the crew's relay of that index, in the place of one that has ended.
func (c *crew) start(i int) {
	c.relays[i] = c.program.Start(c.t, c.db.URL, rig.Options{})
	c.all = append(c.all, c.relays[i])
}

func (c *crew) harms() []harm {
	replace := func(ctx context.Context, rng *rand.Rand, end func(*rig.Relay) error) error {
		i, gap := rng.IntN(len(c.relays)), time.Duration(rng.IntN(1500))*time.Millisecond
		err := end(c.relays[i])
		pause(ctx, gap)
		c.start(i)
		return err
	}
	return []harm{
		{"relay killed", 8, func(ctx context.Context, rng *rand.Rand) error {
			return replace(ctx, rng, func(r *rig.Relay) error { r.Kill(); return nil })
		}},
		{"all relays killed", 4, func(ctx context.Context, rng *rand.Rand) error {
			for _, r := range c.relays {
				r.Kill()
			}
			pause(ctx, time.Duration(rng.IntN(500))*time.Millisecond)
			for i := range c.relays {
				c.start(i)
			}
			return nil
		}},
		{"relay stopped", 2, func(ctx context.Context, rng *rand.Rand) error {
			return replace(ctx, rng, func(r *rig.Relay) error {
				if err := r.Signal(syscall.SIGTERM); err != nil {
					return err
				}
				wait, cancel := context.WithTimeout(ctx, 40*time.Second)
				defer cancel()
				// How it ends is another test's business: the far end may be away.
				_ = rig.Poll(wait, func(context.Context) (bool, error) { gone, _ := r.Exited(); return gone, nil })
				r.Kill()
				return nil
			})
		}},
		{"relay frozen", 2, func(ctx context.Context, rng *rand.Rand) error {
			r := c.relays[rng.IntN(len(c.relays))]
			return while(
				func(context.Context) error { return r.Signal(syscall.SIGSTOP) },
				func(context.Context) error { return r.Signal(syscall.SIGCONT) },
				500*time.Millisecond, 8*time.Second)(ctx, rng)
		}},
	}
}

// smallDisk mounts a file system of 64 MiB and returns the harm of filling it.
// It returns no harm where mounting is not allowed.
func smallDisk(t *testing.T, dir string) []harm {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Logf("no disk-full here: mount: %v", err)
		return nil
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	return []harm{{"disk full", 6, while(
		func(context.Context) error {
			f, err := os.Create(ballast)
			if err != nil {
				return err
			}
			block := make([]byte, 64<<10)
			for {
				if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
					return f.Close()
				} else if err != nil {
					return errors.Join(err, f.Close())
				}
			}
		},
		func(context.Context) error { return os.Remove(ballast) },
		time.Second, 4*time.Second)}}
}
