package supervisor

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// fakeKeeper grants every lease.
type fakeKeeper struct {
	mu      sync.Mutex
	members []lease.Instance
	err     error
	changed func()
	epoch   int64
	drained bool
	owners  map[catalog.Key]string
}

func (k *fakeKeeper) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (k *fakeKeeper) Members() ([]lease.Instance, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.members), k.err
}

func (k *fakeKeeper) set(members ...lease.Instance) {
	k.mu.Lock()
	k.members = members
	k.mu.Unlock()
	k.changed()
}

func (k *fakeKeeper) Hold(ctx context.Context, key catalog.Key, fn func(context.Context, *lease.Lease) error) error {
	k.mu.Lock()
	k.epoch++
	k.owners[key] = "me"
	l := &lease.Lease{Key: key, Epoch: k.epoch}
	k.mu.Unlock()
	return fn(ctx, l)
}

func (k *fakeKeeper) lastOwners(context.Context) (map[catalog.Key]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.owners), nil
}

func (k *fakeKeeper) Drain(context.Context) error {
	k.drained = true
	return nil
}

// stage is a supervisor in a synctest bubble whose runs are scripted.
type stage struct {
	t      *testing.T
	s      *Supervisor
	keeper *fakeKeeper

	mu       sync.Mutex
	snapshot catalog.Snapshot
	runs     map[string][]time.Time // when each pipeline was started
	behave   map[string]func(ctx context.Context, job *Job) error
	stop     context.CancelFunc
	done     chan struct{}
}

func untilStopped(_ context.Context, job *Job) error {
	job.Events.Opened(Opened{Redrive: func() {}})
	<-job.Stop.Done()
	return nil
}

func newStage(t *testing.T, snapshot catalog.Snapshot) *stage {
	t.Helper()
	st := &stage{t: t, snapshot: snapshot, runs: make(map[string][]time.Time), behave: make(map[string]func(context.Context, *Job) error), done: make(chan struct{})}
	metrics, err := observe.NewMetrics(prometheus.NewRegistry(), "b", "v", "g")
	if err != nil {
		t.Fatal(err)
	}
	self := lease.Instance{ID: "me", Backends: []string{"nats"}}
	st.s = New(Config{
		Self: self, Interval: 5 * time.Second, Drain: 30 * time.Second, Metrics: metrics, Logger: slog.New(slog.DiscardHandler),
		Load: func(context.Context) (catalog.Snapshot, error) {
			st.mu.Lock()
			defer st.mu.Unlock()
			return slices.Clone(st.snapshot), nil
		},
		Owners: func(ctx context.Context) (map[catalog.Key]string, error) { return st.keeper.lastOwners(ctx) },
		Listen: func(context.Context) (*pgx.Conn, error) { return nil, errors.New("no server here") },
		Run: func(ctx context.Context, job *Job) error {
			st.mu.Lock()
			st.runs[job.Pipeline.Name] = append(st.runs[job.Pipeline.Name], time.Now())
			behave := st.behave[job.Pipeline.Name]
			st.mu.Unlock()
			if behave == nil {
				behave = untilStopped
			}
			return behave(ctx, job)
		},
	}, func(changed func()) Keeper {
		st.keeper = &fakeKeeper{members: []lease.Instance{self}, changed: changed, owners: make(map[catalog.Key]string)}
		return st.keeper
	})
	stop, cancel := context.WithCancel(t.Context())
	st.stop = cancel
	go func() {
		defer close(st.done)
		_ = st.s.Run(context.WithoutCancel(t.Context()), stop)
	}()
	notify(st.s.reload)
	time.Sleep(time.Second)
	synctest.Wait()
	return st
}

func (st *stage) end() {
	st.t.Helper()
	st.stop()
	<-st.done
}

func (st *stage) change(snapshot ...catalog.Pipeline) {
	st.mu.Lock()
	st.snapshot = snapshot
	st.mu.Unlock()
	notify(st.s.reload)
	time.Sleep(time.Second)
	synctest.Wait()
}

func (st *stage) count(name string) int {
	st.mu.Lock()
	defer st.mu.Unlock()
	return len(st.runs[name])
}

func (st *stage) state(name string) observe.PipelineStatus {
	for _, p := range st.s.Health().Pipelines {
		if p.Name == name {
			return p
		}
	}
	return observe.PipelineStatus{}
}

func testPipeline(name, revision string) catalog.Pipeline {
	return catalog.Pipeline{Key: catalog.Key{Direction: relay.Forward, Name: name}, Enabled: true, Linked: true, Backend: "nats", Revision: revision}
}

func TestOnlyTheChangedPipelineRestarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, catalog.Snapshot{testPipeline("a", "1"), testPipeline("b", "1")})
		defer st.end()
		if st.count("a") != 1 || st.count("b") != 1 || st.s.Health().PipelinesOwned != 2 {
			t.Fatalf("runs %v", st.runs)
		}
		st.change(testPipeline("a", "1"), testPipeline("b", "2"), testPipeline("c", "1"))
		if st.count("a") != 1 || st.count("b") != 2 || st.count("c") != 1 {
			t.Errorf("runs after b changed and c came: %v", st.runs)
		}
		off := testPipeline("b", "2")
		off.Enabled = false
		st.change(testPipeline("a", "1"), off)
		if h := st.s.Health(); h.PipelinesOwned != 1 || st.state("b").State != observe.StateDisabled || h.Status != observe.Healthy {
			t.Errorf("health after b was disabled and c deleted: %+v", h)
		}
	})
}

func TestFailingPipelineBacksOffAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, nil)
		defer st.end()
		st.behave["bad"] = func(context.Context, *Job) error { return errors.New("refused") }
		st.behave["fatal"] = func(context.Context, *Job) error { return relay.Fatal(errors.New("no such stream")) }
		st.change(testPipeline("bad", "1"), testPipeline("fatal", "1"), testPipeline("good", "1"))
		time.Sleep(10 * time.Minute)
		bad, fatal := st.count("bad"), st.count("fatal")
		if bad < 80 || bad > 200 {
			t.Errorf("a failing pipeline was tried %d times in 10 minutes, want once in about 5s", bad)
		}
		if fatal < 55 || fatal > 130 {
			t.Errorf("a pipeline that needs an operator was tried %d times in 10 minutes, want once in about 10s", fatal)
		}
		if st.count("good") != 1 {
			t.Errorf("the good one was started %d times", st.count("good"))
		}
		h := st.s.Health()
		if h.Status != observe.Unhealthy || len(h.Reasons) != 2 || st.state("fatal").State != observe.StateFailed || st.state("fatal").Error != "no such stream" {
			t.Errorf("health %+v", h)
		}
		// At once when its row changes.
		st.mu.Lock()
		delete(st.behave, "fatal")
		st.mu.Unlock()
		st.change(testPipeline("bad", "1"), testPipeline("fatal", "2"), testPipeline("good", "1"))
		if st.state("fatal").State != observe.StateRunning {
			t.Errorf("a second after its row changed the pipeline is %s", st.state("fatal").State)
		}
	})
}

func TestPipelinesMoveWithTheMembers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var all catalog.Snapshot
		for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
			all = append(all, testPipeline(name, "1"))
		}
		st := newStage(t, all)
		me, other := lease.Instance{ID: "me", Backends: []string{"nats"}}, lease.Instance{ID: "other", Backends: []string{"nats"}}
		st.keeper.set(me, other)
		time.Sleep(time.Second)
		count := make(map[string]int)
		for _, p := range all {
			got := st.state(p.Name)
			count[got.Owner]++
			if (got.State == observe.StateRunning) != (got.Owner == "me") {
				t.Errorf("%s is %+v", p.Name, got)
			}
		}
		if h := st.s.Health(); h.PipelinesOwned != 4 || count["me"] != 4 || count["other"] != 4 || h.Status != observe.Healthy {
			t.Errorf("health %+v, want 4 owned; owners %v", h, count)
		}
		for name, starts := range st.runs {
			if len(starts) != 1 {
				t.Errorf("%s was started %d times", name, len(starts))
			}
		}
		// Only an instance without this backend is left.
		st.keeper.set(lease.Instance{ID: "kafka-only", Backends: []string{"kafka"}})
		time.Sleep(time.Second)
		if h := st.s.Health(); h.PipelinesOwned != 0 || len(h.Warnings) != len(all) || st.state("a").State != observe.StateUnserved {
			t.Errorf("health %+v, want all unserved", h)
		}
		st.end()
		if !st.keeper.drained {
			t.Error("the others were not told to take over")
		}
		if err := st.s.Ready(); err == nil {
			t.Error("ready after the shutdown")
		}
	})
}

// A pipeline that fails anyway does not keep its successor waiting.
func TestStuckDrainIsCutShort(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, nil)
		defer st.end()
		st.behave["p"] = func(ctx context.Context, job *Job) error {
			job.Events.Opened(Opened{Redrive: func() {}})
			job.Events.Changed(errors.New("broker away"))
			<-ctx.Done() // deaf to Stop
			return ctx.Err()
		}
		st.change(testPipeline("p", "1"))
		st.mu.Lock()
		delete(st.behave, "p")
		st.mu.Unlock()
		st.change(testPipeline("p", "2"))
		time.Sleep(time.Second)
		if got := st.state("p"); got.State != observe.StateRunning {
			t.Errorf("two seconds after the change the pipeline is %+v", got)
		}
	})
}

// A pipeline that waits after an error starts when an operator has repaired its cause.
func TestRetryStartsAWaitingPipeline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, nil)
		defer st.end()
		broken := true
		st.behave["fatal"] = func(ctx context.Context, job *Job) error {
			if broken {
				return relay.Fatal(errors.New("no such queue"))
			}
			return untilStopped(ctx, job)
		}
		st.change(testPipeline("fatal", "1"))
		time.Sleep(time.Minute)
		tries := st.count("fatal")
		time.Sleep(time.Minute)
		if n := st.count("fatal") - tries; n < 6 {
			t.Errorf("%d attempts in a minute: what heals at the far end starts after 10s at the latest", n)
		}

		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		tries, broken = st.count("fatal"), false
		st.s.retry("other")
		synctest.Wait()
		if st.count("fatal") != tries {
			t.Error("a retry of another pipeline started this one")
		}
		st.s.retry("fatal")
		synctest.Wait()
		if got := st.state("fatal").State; got != observe.StateRunning {
			t.Errorf("the pipeline is %s after its retry", got)
		}
	})
}
