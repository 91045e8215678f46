package lease

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// party is a random fleet whose members come, drain and go.
type party struct {
	t         *testing.T
	rng       *rand.Rand
	mixed     bool // instances differ in their backends
	members   []Instance
	pipelines []Pipeline
	owners    map[store.Key]string
	next      int // number of the next instance
}

var backends = []string{"kafka", "nats", "redis", "sqs"}

func newParty(t *testing.T, seed uint64) *party {
	rng := rand.New(rand.NewPCG(seed, 17))
	p := &party{t: t, rng: rng, mixed: seed%2 == 1, owners: make(map[store.Key]string)}
	for i := range 1 + rng.IntN(120) {
		direction := []relay.Direction{relay.Forward, relay.Reverse}[rng.IntN(2)]
		p.pipelines = append(p.pipelines, Pipeline{store.Key{Direction: direction, Name: fmt.Sprint("p", i)}, backends[rng.IntN(len(backends))]})
	}
	for range 1 + rng.IntN(7) {
		p.join()
	}
	p.owners = Assign(p.members, p.pipelines, nil)
	return p
}

func (p *party) join() Instance {
	i := Instance{ID: fmt.Sprintf("i%d", p.next), Backends: backends}
	p.next++
	if p.mixed {
		i.Backends = nil
		for _, b := range backends {
			if p.rng.IntN(2) == 0 {
				i.Backends = append(i.Backends, b)
			}
		}
	}
	p.members = append(p.members, i)
	return i
}

// step lets one instance come, drain or go. It returns the number of instances with
// pipelines, before or after, whichever is more.
func (p *party) step() (instances int, joined string) {
	before := p.eligible()
	switch at := p.rng.IntN(len(p.members)); {
	case len(p.members) < 2 || p.rng.IntN(2) == 0:
		joined = p.join().ID
	case p.rng.IntN(2) == 0:
		p.members = slices.Clone(p.members)
		p.members[at].Draining = true
	default:
		p.members = slices.Delete(slices.Clone(p.members), at, at+1)
	}
	return max(before, p.eligible(), 1), joined
}

func (p *party) eligible() (n int) {
	for _, m := range p.members {
		if !m.Draining {
			n++
		}
	}
	return n
}

// check verifies an assignment by itself.
func (p *party) check(assigned map[store.Key]string) {
	p.t.Helper()
	byID, load := make(map[string]Instance), make(map[string]int)
	for _, m := range p.members {
		if !m.Draining {
			byID[m.ID], load[m.ID] = m, 0
		}
	}
	for _, pl := range p.pipelines {
		id, ok := assigned[pl.Key]
		able := slices.ContainsFunc(slices.Collect(maps.Values(byID)), func(m Instance) bool { return slices.Contains(m.Backends, pl.Backend) })
		if ok != able || ok && !slices.Contains(byID[id].Backends, pl.Backend) {
			p.t.Fatalf("%v of %s is assigned to %q, which has %v", pl.Key, pl.Backend, id, byID[id].Backends)
		}
		if ok {
			load[id]++
		}
	}
	for a := range byID {
		for b := range byID {
			if same := slices.Equal(byID[a].Backends, byID[b].Backends); same && load[a] > load[b]+1 {
				p.t.Fatalf("instances with the same backends have %d and %d pipelines", load[a], load[b])
			}
		}
	}
	for _, pl := range p.pipelines {
		for id, m := range byID {
			if from := assigned[pl.Key]; from != "" && slices.Contains(m.Backends, pl.Backend) && load[from] > load[id]+1 {
				p.t.Fatalf("%v could move from %s with %d pipelines to %s with %d", pl.Key, from, load[from], id, load[id])
			}
		}
	}
}

func (p *party) moved(assigned map[store.Key]string) (n int) {
	for key, id := range assigned {
		if p.owners[key] != id {
			n++
		}
	}
	return n
}

func (p *party) shuffled() ([]Instance, []Pipeline) {
	members, pipelines := slices.Clone(p.members), slices.Clone(p.pipelines)
	p.rng.Shuffle(len(members), func(a, b int) { members[a], members[b] = members[b], members[a] })
	p.rng.Shuffle(len(pipelines), func(a, b int) { pipelines[a], pipelines[b] = pipelines[b], pipelines[a] })
	return members, pipelines
}

func TestAssignBalancesAndKeeps(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10_000) {
		p := newParty(t, seed)
		p.check(p.owners)
		for range 4 {
			instances, joined := p.step()
			assigned := Assign(p.members, p.pipelines, p.owners)
			p.check(assigned)

			members, pipelines := p.shuffled()
			if again := Assign(members, pipelines, p.owners); !maps.Equal(again, assigned) {
				t.Fatalf("seed %d: another order gives another assignment:\n%s", seed, cmp.Diff(assigned, again))
			}
			if again := Assign(p.members, p.pipelines, assigned); !maps.Equal(again, assigned) {
				t.Fatalf("seed %d: a balanced fleet moves:\n%s", seed, cmp.Diff(assigned, again))
			}
			moved := p.moved(assigned)
			if share := (len(p.pipelines) + instances - 1) / instances; !p.mixed && moved > share {
				t.Fatalf("seed %d: %d of %d pipelines move among %d instances", seed, moved, len(p.pipelines), instances)
			}
			if forced := p.forced(assigned, joined); moved > forced {
				t.Fatalf("seed %d: %d pipelines move, capability forces %d", seed, moved, forced)
			}
			maps.Copy(p.owners, assigned)
		}
	}
}

// forced returns how many pipelines capability may move. These are the newcomer's share,
// or those whose owner has gone. Each may need a chain through all kinds of instances.
func (p *party) forced(assigned map[store.Key]string, joined string) int {
	orphans, received := 0, 0
	for key, id := range assigned {
		if id == joined {
			received++
		}
		if owner := p.owners[key]; !slices.ContainsFunc(p.members, func(m Instance) bool { return m.ID == owner && !m.Draining }) {
			orphans++
		}
	}
	kinds := make(map[string]bool)
	for _, m := range p.members {
		kinds[strings.Join(m.Backends, ",")] = true
	}
	return max(orphans, received) * len(kinds)
}

// Instances read the owners at different moments, and act on what they have read. The
// lock decides: an instance takes what is free and releases what is not its own. Each
// fleet settles, and no pipeline goes back and forth.
func TestAssignSettles(t *testing.T) {
	t.Parallel()
	detours := make(map[int]int)
	for seed := range uint64(2_000) {
		p := newParty(t, seed)
		holders := maps.Clone(p.owners)
		views := make(map[string]map[store.Key]string)
		for _, m := range p.members {
			views[m.ID] = p.owners
		}
		before := p.members
		p.step()
		for key, id := range holders { // the server releases the locks of those that are gone
			if !slices.ContainsFunc(p.members, func(m Instance) bool { return m.ID == id }) {
				delete(holders, key)
			}
		}
		taken := make(map[store.Key]int)
		settled := func() bool {
			for key, id := range Assign(p.members, p.pipelines, p.owners) {
				if holders[key] != id {
					return false
				}
			}
			return true
		}
		for round := 0; !settled(); round++ {
			if round > 50 {
				t.Fatalf("seed %d: not settled after %d rounds", seed, round)
			}
			for range 4 * len(p.members) {
				m := p.members[p.rng.IntN(len(p.members))]
				switch view := views[m.ID]; p.rng.IntN(4) {
				case 0: // it reads, and may have seen the change of members or not
					members := p.members
					if round == 0 && p.rng.IntN(2) == 0 {
						members = before
					}
					views[m.ID] = Assign(members, p.pipelines, p.owners)
				default: // it acts on some pipelines
					for range 1 + p.rng.IntN(20) {
						key := p.pipelines[p.rng.IntN(len(p.pipelines))].Key
						switch mine := view[key] == m.ID && !m.Draining; {
						case holders[key] == m.ID && !mine:
							delete(holders, key)
						case holders[key] == "" && mine:
							holders[key], p.owners[key] = m.ID, m.ID
							taken[key]++
						}
					}
				}
			}
		}
		for _, n := range taken {
			detours[n]++
		}
		p.check(Assign(p.members, p.pipelines, p.owners))
	}
	t.Logf("pipelines by the times that they were taken: %v", detours)
	for n := range detours {
		if n > 2 {
			t.Errorf("%d pipelines were taken %d times after one change", detours[n], n)
		}
	}
}
