package chaos

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// TestStorm lets every backend work in both directions while its relays, its
// server and PostgreSQL are killed, restarted, frozen and disconnected at random.
func TestStorm(t *testing.T) {
	var cases []*stormCase
	for _, k := range set.backends {
		cases = append(cases, newStormCase(t, k))
	}
	stop, cancel := context.WithTimeout(t.Context(), set.duration)
	defer cancel()
	// All share one PostgreSQL, which has a storm of its own.
	var wg sync.WaitGroup
	var shaken string
	wg.Go(func() {
		shaken = storm(t, stop, set.seed, 10*time.Second, serverHarms(fleet.Server("pg18"), "PostgreSQL"))
	})
	for _, c := range cases {
		wg.Go(func() { c.run(stop) })
	}
	wg.Wait()
	for _, c := range cases {
		t.Run(c.kind.Name, func(t *testing.T) { c.judge(t, shaken) })
	}
}

// stormCase is one backend: a pipeline there with an end of its own, and one
// back with another.
type stormCase struct {
	t        *testing.T
	kind     ends.Kind
	db       *rig.Database
	out, in  ends.End
	crew     *crew
	harms    []harm
	seed     uint64
	produced []rig.Event
	harm     string
}

func newStormCase(t *testing.T, k ends.Kind) *stormCase {
	t.Helper()
	p, err := rig.Binary(k.Binary)
	if err != nil {
		t.Fatal(err)
	}
	name := "storm_" + strings.ReplaceAll(k.Name, "-", "_")
	h := fnv.New64a()
	fmt.Fprint(h, name)
	c := &stormCase{t: t, kind: k, seed: set.seed ^ h.Sum64(), db: rig.NewDatabase(t, fleet.Server("pg18").URL, name, p.Migrate)}
	env := ends.Env{Name: name + "_out", Dir: t.TempDir(), Migrate: p.Migrate}
	if k.Server != "" {
		env.Server = fleet.Server(k.Server)
		c.harms = append(c.harms, serverHarms(env.Server, k.Server)...)
	} else if k.Name == "stdout" {
		c.harms = append(c.harms, smallDisk(t, env.Dir)...)
	}
	if c.out, err = k.New(t.Context(), env); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.out.Close)
	c.db.Forward(t, "out", k.Name, c.out.Sink(), nil)
	if k.Source != "" {
		env.Name, env.Dir = name+"_in", t.TempDir()
		if c.in, err = k.New(t.Context(), env); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.in.Close)
		c.db.Reverse(t, "in", k.Source, c.in.Source(), map[string]any{"aggregate_id_from": "body:k"})
	}
	if e, ok := c.out.(interface{ Restart(context.Context) error }); ok {
		c.harms = append(c.harms, harm{"receiver restarted", 4, restarting(e.Restart)})
	}
	c.crew = newCrew(t, p, c.db, 2)
	c.harms = append(c.harms, c.crew.harms()...)
	return c
}

func (c *stormCase) run(stop context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { insertAll(stop, c.db, newFlows(c.seed, "out")) })
	if c.in != nil {
		wg.Go(func() { c.produced = produceAll(c.t, stop, c.in, newFlows(c.seed+1, "in")) })
	}
	wg.Go(func() { c.harm = storm(c.t, stop, c.seed, 4*time.Second, c.harms) })
	wg.Wait()
}

func (c *stormCase) judge(t *testing.T, shaken string) {
	harm := c.harm + ", " + shaken
	written, err := c.db.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.db.Await(t.Context(), func(ctx context.Context) (bool, error) { return c.db.Forwarded(ctx, "out") }); err != nil {
		t.Errorf("forward: not everything is confirmed: %v", err)
	}
	arrived, err := c.out.Arrived(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.enter(t, "forward", rig.Compare(written, arrived), c.kind.Exact, harm)
	if c.in == nil {
		return
	}
	if err := c.db.Await(t.Context(), func(ctx context.Context) (bool, error) {
		n, err := c.db.Returned(ctx)
		return n >= len(c.produced), err
	}); err != nil {
		t.Errorf("reverse: not everything is in the inbox: %v", err)
	}
	inbox, err := c.db.Inbox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.enter(t, "reverse", rig.Compare(c.produced, inbox), true, harm)
}

func (c *stormCase) enter(t *testing.T, direction string, l rig.Ledger, exact bool, harm string) {
	err := l.Err(exact)
	if err != nil {
		t.Errorf("%s: %v", direction, err)
	}
	table.add(line{"storm", c.kind.Name, direction, l, harm, err == nil})
}
