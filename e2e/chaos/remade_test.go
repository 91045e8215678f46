package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// TestRemade deletes, creates and trims what reverse pipelines read, while relays and
// PostgreSQL are killed. Two producers write to two such ends of each backend, and
// both give their messages the same ids and keys. Each message is in the inbox in the
// end, or the relay's log names its loss.
func TestRemade(t *testing.T) {
	var cases []*remadeCase
	kinds := set.backends
	if slices.ContainsFunc(kinds, func(k ends.Kind) bool { return k.Name == "rabbitmq" }) {
		kinds = append(slices.Clone(kinds), ends.RabbitMQStream())
	}
	for _, k := range kinds {
		if c := newRemadeCase(t, k); c != nil {
			cases = append(cases, c)
		}
	}
	stop, cancel := context.WithTimeout(t.Context(), set.duration)
	defer cancel()
	var wg sync.WaitGroup
	var shaken string
	wg.Go(func() {
		shaken = storm(t, stop, set.seed+1, 20*time.Second, serverHarms(fleet.Server("pg18"), "PostgreSQL"))
	})
	for _, c := range cases {
		wg.Go(func() { c.run(stop) })
	}
	wg.Wait()
	for _, c := range cases {
		t.Run(c.kind.Name, func(t *testing.T) { c.judge(t, shaken) })
	}
}

// remadeCase is one backend: two ends, and a pipeline from each into one inbox.
type remadeCase struct {
	t       *testing.T
	kind    ends.Kind
	db      *rig.Database
	crew    *crew
	seed    uint64
	origins []*origin
	harm    string
}

// origin is an end with its producer and its pipeline.
type origin struct {
	c    *remadeCase
	name string
	end  ends.Harmed
	stop bool // on_recreated: stop, until the operator allows the restart
	account

	mu   sync.Mutex // held by the producer for a batch, and by a harm
	flow *flow
	rng  *rand.Rand
	life int
}

func newRemadeCase(t *testing.T, k ends.Kind) *remadeCase {
	t.Helper()
	var origins []*origin
	for i := range 2 {
		name := fmt.Sprintf("remade_%s_%d", k.Name, i+1)
		env := ends.Env{Name: name, Dir: t.TempDir()}
		if k.Server != "" {
			env.Server = fleet.Server(k.Server)
		}
		if k.Source == "" || k.Name == "webhook" || k.Name == "sqs" {
			return nil // holds no position of a pipeline
		}
		end, err := k.New(t.Context(), env)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(end.Close)
		origins = append(origins, &origin{
			name: name, end: end.(ends.Harmed), stop: i == 0 || k.Name == "stdout",
			// The same names, keys and numbers at both ends, and again in each life.
			flow: newFlows(set.seed, "made")[0], rng: rand.New(rand.NewPCG(set.seed, uint64(i))),
		})
	}
	p, err := rig.Binary(k.Binary)
	if err != nil {
		t.Fatal(err)
	}
	c := &remadeCase{t: t, kind: k, seed: set.seed, origins: origins, db: rig.NewDatabase(t, fleet.Server("pg18").URL, "remade_"+k.Name, p.Migrate)}
	for _, o := range c.origins {
		o.c = c
		o.configure(t.Context(), o.keys())
	}
	c.crew = newCrew(t, p, c.db, 2)
	return c
}

func (o *origin) keys() map[string]any {
	if o.stop {
		return o.end.Source()
	}
	return o.end.Cure()
}

func (o *origin) configure(ctx context.Context, keys map[string]any) {
	err := rig.Poll(ctx, func(ctx context.Context) (bool, error) { // PostgreSQL may be away
		err := o.c.db.SetReverse(ctx, o.name, o.c.kind.Source, keys, map[string]any{"aggregate_id_from": "body:k", "id_scope": "far_end"})
		return err == nil, err
	})
	if err != nil {
		o.c.t.Errorf("configure %s: %v", o.name, err)
	}
}

func (c *remadeCase) run(stop context.Context) {
	var wg sync.WaitGroup
	for _, o := range c.origins {
		// A far end that changes before the pipeline has read it for the first time is the
		// one that it adopts.
		if err := o.delivers(stop, o.produce(20)); err != nil {
			c.t.Error(err)
			return
		}
		wg.Go(func() {
			for stop.Err() == nil {
				o.produce(1 + o.rng.IntN(20))
				pause(stop, time.Duration(20+o.rng.IntN(60))*time.Millisecond)
			}
		})
	}
	harms := c.crew.harms()
	for _, o := range c.origins {
		for _, h := range o.end.Harms() {
			harms = append(harms, harm{h.Name, 8, func(ctx context.Context, rng *rand.Rand) error { return o.suffer(ctx, rng, h) }})
		}
	}
	wg.Go(func() { c.harm = storm(c.t, stop, c.seed, time.Second, harms) })
	wg.Wait()
}

// produce writes n events to the end as it is now, and enters them when it has them.
func (o *origin) produce(n int) []rig.Event {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.send(n)
}

// delivers returns nil when the events are in the inbox.
func (o *origin) delivers(ctx context.Context, events []rig.Event) error {
	if err := o.c.db.Await(ctx, func(ctx context.Context) (bool, error) { return o.c.has(ctx, events) }); err != nil {
		return fmt.Errorf("%s does not deliver: %w", o.name, err)
	}
	return nil
}

func (o *origin) send(n int) []rig.Event {
	events := o.flow.some(n)
	for i := range events {
		events[i].Note = fmt.Sprintf("%s, life %d", o.name, o.life)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(o.c.t.Context()), hung)
	defer cancel()
	foreign := records(events)
	for i := range foreign {
		foreign[i].Foreign = true
	}
	if err := o.end.Produce(ctx, foreign); err != nil {
		o.c.t.Errorf("produce: %v", err)
		return nil
	}
	o.write(events)
	return events
}

// suffer does h to the end, beside a crew that works, is frozen or dead, and waits until
// the pipeline works again. It is the operator of a pipeline that stops, too.
func (o *origin) suffer(ctx context.Context, rng *rand.Rand, h ends.Harm) error {
	relays, again := rng.IntN(3), rng.IntN(2) == 0
	for _, r := range o.c.crew.relays {
		switch relays {
		case 1:
			_ = r.Signal(syscall.SIGSTOP) // a relay that has ended is started below
		case 2:
			r.Kill()
		}
	}
	if relays > 0 { // messages that the relay has not read
		for range 10 {
			o.produce(20)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	name := o.end.Name()
	episode := o.open(fmt.Sprintf("%s, relays %s", h.Name, []string{"at work", "frozen", "dead"}[relays]), h, name)
	if err := h.Do(ctx); err != nil {
		episode.failed = true
		return err
	}
	if h.Remade {
		if o.life++; o.c.kind.Name != "rabbitmq" { // a queue's messages have no ids but their producer's
			o.flow.ids.Store(0)
		}
	}
	probe := o.send(20)
	for i, r := range o.c.crew.relays {
		switch relays {
		case 1:
			_ = r.Signal(syscall.SIGCONT)
		case 2:
			o.c.crew.start(i)
		}
	}
	if again {
		pause(ctx, time.Duration(rng.IntN(2000))*time.Millisecond)
		for i, r := range o.c.crew.relays {
			r.Kill()
			o.c.crew.start(i)
		}
	}
	cured := false
	err := o.c.db.Await(ctx, func(ctx context.Context) (bool, error) {
		var err error
		if episode.alarms, err = o.c.crew.alarms(episode); err != nil {
			return false, err
		}
		if o.stop && !cured && len(episode.alarms) > 0 {
			o.configure(ctx, o.end.Cure())
			cured = true
		}
		return o.c.has(ctx, probe)
	})
	if err != nil {
		episode.failed = true
		err = fmt.Errorf("%s after %s does not deliver: %w", o.name, h.Name, err)
	}
	if cured {
		o.configure(ctx, o.end.Source())
	}
	// A relay looks for what was trimmed only now and then.
	return errors.Join(err, o.c.db.Await(ctx, func(ctx context.Context) (bool, error) {
		var err error
		if episode.alarms, err = o.c.crew.alarms(episode); err != nil || len(episode.alarms) > 0 {
			return err == nil, err
		}
		return o.c.has(ctx, o.writtenBefore(episode))
	}))
}

// has reports whether all events are in the inbox.
func (c *remadeCase) has(ctx context.Context, events []rig.Event) (done bool, err error) {
	ids, notes := make([]int64, len(events)), make([]string, len(events))
	for i, e := range events {
		ids[i], notes[i] = e.ID, e.Note
	}
	err = c.db.Pool.QueryRow(ctx, `SELECT NOT EXISTS (
		SELECT id::text, note FROM unnest($1::bigint[], $2::text[]) w (id, note)
		EXCEPT SELECT payload->>'id', payload->>'note' FROM pgtrickle.back)`, ids, notes).Scan(&done)
	return done, err
}

func (c *remadeCase) judge(t *testing.T, shaken string) {
	for _, o := range c.origins {
		if err := o.delivers(t.Context(), o.produce(60)); err != nil {
			t.Error(err)
		}
	}
	inbox, err := c.db.Inbox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byNote := make(map[string][]rig.Event)
	for _, r := range inbox {
		e, err := rig.Decode(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(e.Note, ",")
		byNote[name] = append(byNote[name], e)
	}
	for _, o := range c.origins {
		for _, e := range o.episodes {
			if !e.failed {
				continue
			}
			if e.alarms, err = c.crew.alarms(e); err != nil {
				t.Fatal(err)
			}
		}
		v := o.settle(byNote[o.name])
		t.Logf("%s: %s", o.name, v.report)
		judged := v.ledger
		if c.kind.Name == "rabbitmq" {
			// A relay that is frozen past its lease keeps what the broker has sent it, while its
			// successor reads. A queue with two consumers has no order.
			judged.Reordered = 0
		}
		err := judged.Err(true)
		if err != nil {
			t.Errorf("%s: %v", o.name, err)
		}
		what := fmt.Sprintf("%d lost with an alarm, %d read again after one; %s, %s", v.named, v.again, c.harm, shaken)
		table.add(line{"remade", o.name, "reverse", v.ledger, what, err == nil})
	}
}
