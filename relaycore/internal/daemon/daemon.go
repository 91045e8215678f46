// Package daemon runs the pipelines of a database until a signal stops it. It
// serves HTTP, waits for the database, and connects the supervisor to its parts.
package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/internal/capture"
	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/gcfloor"
	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pipeline"
	"github.com/grove/pgtrickle-relay/relaycore/internal/retention"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/internal/supervisor"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Config is what a daemon needs.
type Config struct {
	Name        string // of the binary
	Version     string
	Registry    *relay.Registry
	Access      *relaycfg.Access // what pipelines may reach in this process
	PostgresURL string
	// DataPostgresURL has the login that writes inboxes; empty means that of PostgresURL.
	DataPostgresURL string
	Group           string
	InstanceID      string // "": unique
	Metrics         observe.Endpoint
	Logger          *slog.Logger

	DiscoveryInterval time.Duration // between reads of the catalog
	DrainTimeout      time.Duration
	AutoMigrate       bool
	Owner             string // of the catalog, with AutoMigrate; see [migrate.Options]
	MaxConnections    int
	MaxInFlight       int64 // bytes; 0: derived from the memory limit
}

// ErrIncomplete reports that the daemon ended before all messages in flight were
// delivered. Run has logged it.
var ErrIncomplete = errors.New("drain incomplete")

// daemon is a running relay.
type daemon struct {
	cfg    Config
	log    *slog.Logger
	self   lease.Instance
	budget *budget.Budget

	pool    *pgxpool.Pool
	readers *pgxpool.Pool   // connections that read outboxes
	inboxes *pgxpool.Pool   // connections that write inboxes
	conn    *pgx.ConnConfig // of connections outside the pools

	reg     *prometheus.Registry
	metrics *observe.Metrics
	phase   phase
}

// Run serves HTTP, waits for the database and runs pipelines. On a signal it reports
// not ready, drains the pipelines, releases the leases and stops HTTP, in this order.
func Run(ctx context.Context, cfg Config) error {
	d, err := newDaemon(ctx, cfg)
	if err != nil {
		return err
	}
	defer d.close()

	srv, err := observe.Open(ctx, cfg.Metrics,
		observe.Probes{Health: d.health, Ready: d.phase.ready, Live: func() error { return nil }}, d.reg, d.log)
	if err != nil {
		return err
	}
	d.log.Info("relay started", "binary", cfg.Name, "version", cfg.Version, "instance", d.self.ID, "group", cfg.Group,
		"backends", strings.Join(cfg.Registry.Names(), ","))

	stop, abandon, cleanUp := d.handleSignals(ctx)
	defer cleanUp()
	err = d.serve(abandon, stop, srv)

	switch {
	case err != nil:
		return err
	case abandon.Err() != nil:
		d.log.Error("drain incomplete", "cause", context.Cause(abandon), "effect", "messages in flight are delivered again")
		return ErrIncomplete
	}
	d.log.Info("relay stopped")
	return nil
}

// newDaemon prepares everything that needs no server: it connects to nothing.
func newDaemon(ctx context.Context, cfg Config) (*daemon, error) {
	d := &daemon{cfg: cfg, log: cfg.Logger, self: newInstance(&cfg), reg: prometheus.NewRegistry()}
	d.phase.start()
	limit := limitMemory(d.log)
	if !d.cfg.Metrics.Pprof {
		skipHeapProfile()
	}
	d.budget = budget.New(usualBudget(cfg.MaxInFlight, limit), largeBudget(limit))

	if err := d.openPools(ctx); err != nil {
		return nil, err
	}
	d.phase.wait(fmt.Errorf("connecting to %s", net.JoinHostPort(d.conn.Host, strconv.Itoa(int(d.conn.Port)))))

	var err error
	if d.metrics, err = observe.NewMetrics(d.reg, cfg.Name, cfg.Version, runtime.Version()); err != nil {
		return nil, err
	}
	d.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return d, nil
}

// openPools divides the connections. Half of them read outboxes and are tuned for it. A
// quarter writes inboxes, which may have triggers and foreign keys: their plans must
// follow their owner's settings. The rest is for the relay's own tables.
func (d *daemon) openPools(ctx context.Context) error {
	half, quarter := d.cfg.MaxConnections/2, d.cfg.MaxConnections/4

	config, err := pg.PoolConfig(d.cfg.PostgresURL, d.cfg.Name, d.cfg.MaxConnections-half-quarter)
	if err != nil {
		return err
	}
	pg.WarnUnverified(d.log, "postgres-url", config)
	d.conn = config.ConnConfig.Copy()
	if d.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}

	if config, err = pg.PoolConfig(d.cfg.PostgresURL, d.cfg.Name, half); err != nil {
		return err
	}
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		return errors.Join(pg.AllowRows(ctx, conn), outbox.Tune(ctx, conn))
	}
	if d.readers, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}

	if config, err = pg.DataConfig(d.cfg.DataPostgresURL, d.cfg.PostgresURL, d.cfg.Name, quarter); err != nil {
		return err
	}
	if d.cfg.DataPostgresURL != "" {
		pg.WarnUnverified(d.log, "data-postgres-url", config)
	}
	if config.ConnConfig.User == d.conn.User {
		d.log.Info("inbox triggers have relay's rights", "role", cmp.Or(d.conn.User, "default"),
			"effect", "an inbox's owner can read pipelines and change checkpoints", "cure", "set --data-postgres-url to another login")
	}
	d.inboxes, err = pgxpool.NewWithConfig(ctx, config)
	return err
}

func (d *daemon) close() {
	d.inboxes.Close()
	d.readers.Close()
	d.pool.Close()
}

func newInstance(cfg *Config) lease.Instance {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	self := lease.Instance{
		ID: cfg.InstanceID, Group: cfg.Group, Binary: cfg.Name, Version: cfg.Version, Hostname: host, PID: os.Getpid(),
		Started: time.Now(),
	}

	if self.ID == "" {
		random := make([]byte, 3)
		_, _ = rand.Read(random) // never fails
		self.ID = fmt.Sprintf("%s-%d-%s", host, self.PID, hex.EncodeToString(random))
	}
	self.LockKey = store.LockKey(self.ID)
	for _, b := range cfg.Registry.Backends() {
		self.Backends = append(append(self.Backends, b.Name), b.Aliases...)
	}
	return self
}

// handleSignals returns two contexts. stop ends with the first signal. abandon
// ends with the second signal, or when the drain exceeds its timeout. A third
// signal kills the process.
func (d *daemon) handleSignals(ctx context.Context) (stop, abandon context.Context, cleanUp func()) {
	stop, cancelStop := context.WithCancel(ctx)
	abandon, cancelAbandon := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP) // there is nothing to reload: the catalog is watched
	ended := make(chan struct{})

	go func() {
		defer signal.Stop(signals)
		select {
		case s := <-signals:
			d.log.Info("signal received, draining", "signal", s.String(), "drain_timeout", d.cfg.DrainTimeout.String())
		case <-ended:
			return
		}
		cancelStop()

		select {
		case <-signals:
			cancelAbandon(errors.New("second signal"))
		case <-time.After(d.cfg.DrainTimeout):
			cancelAbandon(errors.New("drain timeout"))
		case <-ended:
		}
	}()

	return stop, abandon, func() {
		close(ended)
		cancelStop()
		cancelAbandon(nil)
	}
}

// serve runs the pipelines and serves HTTP until they have ended, so that /readyz
// and /metrics answer during the whole drain.
func (d *daemon) serve(ctx, stop context.Context, srv *observe.Server) error {
	stop, stopNow := context.WithCancel(stop)
	defer stopNow()

	served := make(chan error, 1)
	go func() {
		err := srv.Run()
		stopNow() // a relay without metrics must not run on
		served <- err
	}()

	runErr := d.runPipelines(ctx, stop)

	shutdownErr := shutDown(context.WithoutCancel(ctx), srv)
	err := <-served
	if errors.Is(err, http.ErrServerClosed) {
		return errors.Join(runErr, shutdownErr)
	}
	return errors.Join(runErr, fmt.Errorf("serve metrics: %w", err), shutdownErr)
}

// shutDown waits a moment for requests, and then closes their connections.
func shutDown(ctx context.Context, srv *observe.Server) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()

	err := srv.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return srv.Close()
	}
	return err
}

// sweepInterval is the time between two searches for expired outbox rows, and for
// tables whose changes are not recorded.
const sweepInterval = time.Minute

// runPipelines waits for the database, and then runs pipelines until stop ends
// and they are drained, or ctx ends. It returns why the process cannot run any.
func (d *daemon) runPipelines(ctx, stop context.Context) error {
	if !d.awaitDatabase(stop) {
		return nil
	}

	s := d.newSupervisor()
	d.phase.run(s)

	sweeping, stopSweeping := context.WithCancel(stop)
	var sweeper sync.WaitGroup
	sweeper.Go(func() { retention.Run(sweeping, d.pool, d.log, sweepInterval, retention.Options{}) })
	sweeper.Go(func() { capture.Watch(sweeping, d.pool, d.log, sweepInterval, d.metrics.SetCaptureProblems) })
	sweeper.Go(func() { gcfloor.ReturnIdle(sweeping, returnIdleEvery) })

	err := s.Run(ctx, stop)

	stopSweeping()
	sweeper.Wait()
	return err
}

// newSupervisor connects the parts. The catalog has the pipelines,
// the keeper holds the leases of those that this process owns, and the runner runs one.
func (d *daemon) newSupervisor() *supervisor.Supervisor {
	pipelines := catalog.New(d.cfg.Registry, d.cfg.Access)
	group := store.New(d.pool, d.cfg.Group)
	runner := &pipeline.Runner{
		Pool: d.pool, Readers: d.readers, Inboxes: d.inboxes, Group: d.cfg.Group, Owner: d.self.ID, Version: d.cfg.Version, Budget: d.budget,
	}

	return supervisor.New(supervisor.Config{
		Self:        d.self,
		Load:        func(ctx context.Context) (catalog.Snapshot, error) { return pipelines.Load(ctx, d.pool) },
		Listen:      func(ctx context.Context) (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, d.conn) },
		Interval:    d.cfg.DiscoveryInterval,
		Owners:      group.Owners,
		Run:         runner.Run,
		Sequences:   runner.Sequences,
		DeadLetters: group.CountDeadLetters, Intruders: group.Intruders,
		Report:  group.Report,
		Drain:   d.cfg.DrainTimeout,
		Metrics: d.metrics,
		Logger:  d.log,
	}, d.newKeeper)
}

func (d *daemon) newKeeper(changed func()) supervisor.Keeper {
	return lease.New(lease.Config{
		Connect: func(ctx context.Context) (lease.Conn, error) { return lease.Connect(ctx, d.conn, d.self) },
		Logger:  d.log,
		Changed: changed,
	})
}
