// Package supervisor runs the pipelines that this process should run.
//
// It compares the catalog, the instance that should run each pipeline (see
// [lease.Assign]), and what runs here. Each pipeline has a goroutine that takes
// the lease, runs a [Job] and releases the lease; if it fails, it alone backs off. A
// change of one row drains and restarts that pipeline and no other.
package supervisor

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
)

// Keeper is the part of [lease.Keeper] that a supervisor uses.
type Keeper interface {
	Run(ctx context.Context) error
	Members() ([]lease.Instance, error)
	Hold(ctx context.Context, key catalog.Key, fn func(context.Context, *lease.Lease) error) error
	Drain(ctx context.Context) error
}

// Config is what a supervisor needs.
type Config struct {
	Self lease.Instance
	// Load reads the catalog.
	Load func(ctx context.Context) (catalog.Snapshot, error)
	// Listen opens the connection on which notifications arrive.
	Listen   func(ctx context.Context) (*pgx.Conn, error)
	Interval time.Duration // between polls of the catalog
	// Owners returns the last owner of each pipeline.
	Owners func(ctx context.Context) (map[catalog.Key]string, error)
	// Run runs a pipeline once, under its lease.
	Run func(ctx context.Context, job *Job) error
	// Sequences returns the last values of sequences; may be nil.
	Sequences func(ctx context.Context, oids []uint32) (map[uint32]*int64, error)
	// DeadLetters counts the group's dead letters; may be nil.
	DeadLetters func(ctx context.Context) (map[catalog.Key]store.DeadLetterCounts, error)
	// Intruders returns the sessions of other roles at the locks of pipelines; may be nil.
	Intruders func(ctx context.Context, keys []catalog.Key) (map[catalog.Key]*store.Intruder, error)
	// Report records that a pipeline cannot be started, for `status`; may be nil.
	Report  func(ctx context.Context, key catalog.Key, reason string) error
	Drain   time.Duration // how long a pipeline may take to drain
	Metrics *observe.Metrics
	Logger  *slog.Logger
}

// Supervisor runs pipelines. Make one with [New].
type Supervisor struct {
	cfg    Config
	keeper Keeper
	wake   chan struct{} // receives when what should run may have changed
	reload chan struct{} // receives when the catalog should be read
	settle *time.Timer   // wakes while the owners are not those that should be

	mu        sync.Mutex // guards what Health reads
	snapshot  catalog.Snapshot
	loadedAt  time.Time // zero before the first read
	loadErr   error
	listenErr error // nil while it listens for changes
	runners   map[catalog.Key]*runner
	assigned  map[catalog.Key]string  // the instance that should run each pipeline
	problems  map[catalog.Key]problem // pipelines of this instance that cannot be started
	intruders map[catalog.Key]*store.Intruder
	exited    []*runner
	draining  bool
	started   time.Time

	ownersFailed bool
	unserved     map[catalog.Key]string // backends by pipeline
	countDue     atomic.Bool            // dead letters have changed
}

// problem is why a pipeline's configuration is not valid.
type problem struct {
	text  string
	since time.Time
}

// New returns a supervisor. newKeeper is given the function that the keeper
// must call when the members of the group change.
func New(cfg Config, newKeeper func(changed func()) Keeper) *Supervisor {
	s := &Supervisor{
		cfg: cfg, wake: make(chan struct{}, 1), reload: make(chan struct{}, 1),
		runners: make(map[catalog.Key]*runner), problems: make(map[catalog.Key]problem), started: time.Now(),
		listenErr: errors.New("not connected yet"),
	}
	s.settle = time.AfterFunc(settleEvery, func() { notify(s.wake) })
	s.keeper = newKeeper(func() { notify(s.wake) })
	return s
}

// notify wakes the receiver of ch, unless a notification waits for it already.
func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Run runs pipelines until stop ends, then drains them and returns. When ctx
// ends it abandons them. If the keeper fails for good, Run drains and returns its error.
func (s *Supervisor) Run(ctx, stop context.Context) error {
	stop, stopNow := context.WithCancel(stop)
	defer stopNow()
	keeperCtx, closeKeeper := context.WithCancel(ctx)
	watchCtx, stopWatching := context.WithCancel(ctx)
	var background sync.WaitGroup
	var keeperErr error
	background.Go(func() {
		keeperErr = s.keeper.Run(keeperCtx)
		stopNow()
	})
	background.Go(func() { s.watch(watchCtx) })
	background.Go(func() { s.loadAll(watchCtx) })
	background.Go(func() { s.monitor(watchCtx) })
	if s.cfg.Sequences != nil {
		background.Go(func() { s.watchSequences(watchCtx) })
	}

	s.loop(ctx, stop)

	s.settle.Stop()
	stopWatching()
	closeKeeper()
	background.Wait()
	return keeperErr
}

func (s *Supervisor) loop(ctx, stop context.Context) {
	for {
		select {
		case <-s.wake:
			s.reconcile(ctx)
		case <-stop.Done():
			s.shutDown(ctx)
			return
		case <-ctx.Done():
			s.shutDown(ctx)
			return
		}
	}
}

// shutDown asks the other instances to take over, and drains what runs.
func (s *Supervisor) shutDown(ctx context.Context) {
	s.mu.Lock()
	s.draining = true
	var running []*runner
	for _, r := range s.runners {
		running = append(running, r)
	}
	s.mu.Unlock()
	s.cfg.Logger.Info("draining", "pipelines", len(running))
	bounded, cancel := context.WithTimeout(ctx, time.Second)
	if err := s.keeper.Drain(bounded); err != nil && !errors.Is(err, lease.ErrNoSession) && ctx.Err() == nil {
		s.cfg.Logger.Warn("cannot announce the drain", "err", err)
	}
	cancel()
	for _, r := range running {
		r.drain()
	}
	for _, r := range running {
		<-r.done
	}
}

// watch passes the notifications of PostgreSQL on.
func (s *Supervisor) watch(ctx context.Context) {
	catalog.Watch(ctx, s.cfg.Listen, s.cfg.Interval, catalog.Events{
		Changed: func() { notify(s.reload) },
		Retry:   s.retry,
		DeadLetters: func(pipeline string) {
			s.cfg.Metrics.Notifications.Add(1)
			s.countDue.Store(true)
			s.each(func(r *runner) {
				if pipeline == "" || pipeline == r.pipeline.Name {
					r.redrive()
				}
			})
		},
		Outbox: func(table string) {
			s.cfg.Metrics.Notifications.Add(1)
			s.each(func(r *runner) { r.wakeFor(table) })
		},
		Listening: s.setListening,
	})
}

// retry starts waiting pipelines of a name, or all with an empty name, at once.
func (s *Supervisor) retry(pipeline string) {
	s.each(func(r *runner) {
		if pipeline == "" || pipeline == r.pipeline.Name {
			notify(r.kick)
		}
	})
}

func (s *Supervisor) each(fn func(*runner)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.runners {
		fn(r)
	}
}

func (s *Supervisor) setListening(err error) {
	s.mu.Lock()
	was := s.listenErr
	s.listenErr = err
	s.mu.Unlock()
	s.cfg.Metrics.ListenerUp.Store(err == nil)
	switch {
	case err == nil && was != nil:
		s.cfg.Logger.Debug("listening for changes")
	case err != nil && (was == nil || was.Error() != err.Error()) && s.started.Before(time.Now().Add(-time.Second)):
		s.cfg.Logger.Warn("not listening for changes, polling instead", "err", err)
	}
}

// loadAll reads the catalog on every request.
func (s *Supervisor) loadAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.reload:
		}
		loading, cancel := context.WithTimeout(ctx, 10*time.Second)
		snapshot, err := s.cfg.Load(loading)
		if err == nil && s.cfg.Intruders != nil {
			s.findIntruders(loading, snapshot)
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		s.loadedAs(snapshot, err)
	}
}

// findIntruders looks for other roles at the locks of enabled pipelines.
func (s *Supervisor) findIntruders(ctx context.Context, snapshot catalog.Snapshot) {
	var keys []catalog.Key
	for i := range snapshot {
		if snapshot[i].Enabled {
			keys = append(keys, snapshot[i].Key)
		}
	}
	found, err := s.cfg.Intruders(ctx, keys)
	if err != nil {
		s.cfg.Logger.Warn("pipelines' locks not checked", "err", err)
		return
	}

	s.mu.Lock()
	before := s.intruders
	s.intruders = found
	s.mu.Unlock()
	for key, i := range found {
		if b := before[key]; b == nil || *b != *i {
			s.cfg.Logger.Error("another role at pipeline's lock", "pipeline", key.Name, "direction", key.Direction,
				"role", i.Role, "session", i.PID, "holds", i.Holds, "cure", i.Cure())
		}
	}
}

// loadedAs takes over a snapshot, or the error of reading it.
func (s *Supervisor) loadedAs(snapshot catalog.Snapshot, err error) {
	err = pg.Explain(err)
	s.mu.Lock()
	failed := s.loadErr
	s.loadErr = err
	var changes catalog.Changes
	first := s.loadedAt.IsZero()
	if err == nil {
		changes = catalog.Diff(s.snapshot, snapshot)
		s.snapshot, s.loadedAt = snapshot, time.Now()
	}
	s.mu.Unlock()
	s.cfg.Metrics.CatalogUp.Store(err == nil)
	if err != nil {
		s.cfg.Metrics.ReloadErrors.Add(1)
		if failed == nil || failed.Error() != err.Error() { // once for each change of state
			s.cfg.Logger.Error("cannot read pipelines, will retry", "err", err)
		}
		return
	}
	if failed != nil {
		s.cfg.Logger.Info("pipelines can be read again")
	}
	if first {
		s.cfg.Logger.Info("pipelines loaded", "enabled", len(changes.Added), "total", len(snapshot))
	} else if !changes.Empty() {
		s.cfg.Metrics.Reloads.Add(1)
		s.cfg.Logger.Info("pipelines changed",
			"added", names(changes.Added), "removed", names(changes.Removed), "changed", names(changes.Changed))
	}
	notify(s.wake)
}

func names(keys []catalog.Key) []string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = k.String()
	}
	return out
}

// settleEvery is the time between two reads of the owners while they change.
const settleEvery = 250 * time.Millisecond

// reconcile starts and stops runners until what runs here is what should.
func (s *Supervisor) reconcile(ctx context.Context) {
	// Members first: what a member that is gone has held, the owners show as it was.
	members, err := s.keeper.Members()
	var owners map[catalog.Key]string
	var ownersErr error
	if err == nil {
		owners, ownersErr = s.readOwners(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetExited()
	if was := s.cfg.Metrics.SessionUp.Swap(err == nil); was && err != nil {
		s.cfg.Metrics.SessionsLost.Add(1)
	}
	s.cfg.Metrics.Instances.Store(int64(len(members)))
	if err != nil || s.loadedAt.IsZero() {
		return // without a session, runners have lost their leases and retry
	}
	if ownersErr == nil {
		s.assign(members, owners)
	} else {
		s.settle.Reset(settleEvery) // until then, what was assigned stays
	}
	wanted := make(map[catalog.Key]bool)
	unserved := make(map[catalog.Key]string)
	exists := make(map[catalog.Key]bool)
	for _, p := range s.snapshot {
		exists[p.Key] = true
		if !p.Enabled {
			s.release(p.Key)
			continue
		}
		if !lease.Served(members, p.Backend) {
			unserved[p.Key] = p.Backend
		}
		if s.decide(ctx, p, s.assigned[p.Key] == s.cfg.Self.ID) {
			wanted[p.Key] = true
		}
	}
	for key, r := range s.runners {
		if !wanted[key] {
			r.drain()
		}
	}
	for key := range s.problems {
		if !exists[key] {
			delete(s.problems, key)
		}
	}
	s.cfg.Metrics.Keep(func(k catalog.Key) bool { return exists[k] || s.runners[k] != nil })
	s.warnOfUnserved(unserved)
}

func (s *Supervisor) readOwners(ctx context.Context) (map[catalog.Key]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	owners, err := s.cfg.Owners(ctx)
	if err != nil && !s.ownersFailed && ctx.Err() == nil {
		s.cfg.Logger.Error("cannot read owners, will retry", "err", err)
	}
	s.ownersFailed = err != nil
	return owners, err
}

// assign computes which instance should run each pipeline. It looks again soon if
// another one ran it last: the views of the instances may still differ.
func (s *Supervisor) assign(members []lease.Instance, owners map[catalog.Key]string) {
	var enabled []lease.Pipeline
	for _, p := range s.snapshot {
		if p.Enabled {
			enabled = append(enabled, lease.Pipeline{Key: p.Key, Backend: p.Backend})
		}
	}
	s.assigned = lease.Assign(members, enabled, owners)
	for i := range s.snapshot {
		p := &s.snapshot[i]
		if id, ok := s.assigned[p.Key]; ok && id != owners[p.Key] && p.Err == nil {
			s.settle.Reset(settleEvery)
			return
		}
	}
}

// decide starts or restarts one enabled pipeline, if it is this instance's, and
// reports whether it should run here.
func (s *Supervisor) decide(ctx context.Context, p catalog.Pipeline, mine bool) bool {
	r := s.runners[p.Key]
	if !mine || !p.Linked {
		s.release(p.Key)
		return false
	}
	if p.Err != nil {
		// A secret that cannot be read at the moment does not stop a running pipeline.
		if r != nil && bytes.Equal(r.pipeline.Stored, p.Stored) && !p.Malformed() {
			return true
		}
		s.refuse(ctx, p)
		return false
	}
	delete(s.problems, p.Key)
	switch {
	case r == nil:
		s.start(ctx, p)
	case r.pipeline.Revision != p.Revision:
		r.drain() // its end wakes the supervisor, which then starts the new revision
	}
	return true
}

// release forgets the problem of a pipeline that this instance should not run.
func (s *Supervisor) release(key catalog.Key) {
	delete(s.problems, key)
	if s.runners[key] == nil {
		s.cfg.Metrics.SetHealth(key, observe.HealthNone)
	}
}

// refuse records and reports a configuration that is not valid, once.
func (s *Supervisor) refuse(ctx context.Context, p catalog.Pipeline) {
	text := pg.OneLine(p.Err)
	s.cfg.Metrics.Pipeline(p.Key).SetHealth(observe.HealthBad)
	if s.problems[p.Key].text == text {
		return
	}
	s.problems[p.Key] = problem{text, time.Now()}
	s.cfg.Logger.Error("pipeline has an invalid configuration", "pipeline", p.Name, "direction", p.Direction, "err", text)
	if s.cfg.Report != nil {
		go func() {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			_ = s.cfg.Report(ctx, p.Key, text) // health and log have it too
		}()
	}
}

// warnOfUnserved logs each pipeline without an instance that can run it, once.
func (s *Supervisor) warnOfUnserved(unserved map[catalog.Key]string) {
	for key, backend := range unserved {
		if _, logged := s.unserved[key]; !logged {
			s.cfg.Logger.Warn("no live instance has the backend", "pipeline", key.Name, "direction", key.Direction, "backend", backend)
		}
	}
	s.cfg.Metrics.Unserved(unserved)
	s.unserved = unserved
}

func (s *Supervisor) start(ctx context.Context, p catalog.Pipeline) {
	r := newRunner(s, p)
	s.runners[p.Key] = r
	go func() {
		r.run(ctx)
		s.mu.Lock()
		s.exited = append(s.exited, r)
		s.mu.Unlock()
		close(r.done)
		notify(s.wake)
	}()
}

// forgetExited drops the runners that have ended.
func (s *Supervisor) forgetExited() {
	for _, r := range s.exited {
		if s.runners[r.pipeline.Key] == r {
			delete(s.runners, r.pipeline.Key)
		}
	}
	s.exited = nil
}
