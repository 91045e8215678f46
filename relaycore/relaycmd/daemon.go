package relaycmd

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/retention"
	"github.com/grove/pgtrickle-relay/relaycore/internal/supervisor"
)

// daemon is a running relay.
type daemon struct {
	*program
	log     *slog.Logger
	pool    *pgxpool.Pool
	readers *pgxpool.Pool   // connections that read outboxes
	conn    *pgx.ConnConfig // of connections outside the pool
	self    lease.Instance
	reg     *prometheus.Registry
	met     *observe.Metrics

	mu      sync.Mutex
	super   *supervisor.Supervisor // nil while the catalog is awaited
	waiting error                  // why it is
	started time.Time
}

// runDaemon is the command run. In order: listen for HTTP, wait for the catalog,
// run pipelines; on a signal: not ready, take no more, finish, checkpoint,
// release, stop HTTP.
func runDaemon(ctx context.Context, p *program, _ []string) error {
	d := &daemon{program: p, log: p.opts.logger(p.stderr), started: time.Now(), reg: prometheus.NewRegistry(), waiting: errors.New("starting")}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	defer d.pool.Close()
	defer d.readers.Close()
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.opts.metricsAddr)
	if err != nil {
		return fmt.Errorf("--metrics-addr: %w", err)
	}
	d.log.Info("relay started", "binary", p.name, "version", buildVersion(), "instance", d.self.ID, "group", p.opts.group,
		"backends", strings.Join(p.registry.Names(), ","), "metrics_addr", ln.Addr().String())

	stop, abandon, cleanUp := d.signals(ctx)
	defer cleanUp()
	err = d.runAll(abandon, stop, ln)
	switch {
	case err != nil:
		return err
	case abandon.Err() != nil:
		d.log.Error("stopped before all was drained; what was in flight is delivered again", "cause", context.Cause(abandon))
		return errSilent
	}
	d.log.Info("relay stopped")
	return nil
}

func (d *daemon) prepare(ctx context.Context) error {
	limit := limitMemory(d.log)
	budget, err := d.opts.budget(limit)
	if err != nil {
		return err
	}
	half := d.opts.maxConnections / 2
	config, err := poolConfig(d.opts.postgresURL, d.name, d.opts.maxConnections-half)
	if err != nil {
		return err
	}
	d.conn = config.ConnConfig.Copy()
	if d.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil { // connects to nothing yet
		return err
	}
	// Those that read outboxes are tuned for it, and no others: an inbox may have
	// triggers, and foreign keys, which are to be planned as their owner has it.
	if config, err = poolConfig(d.opts.postgresURL, d.name, half); err != nil {
		return err
	}
	config.AfterConnect = outbox.Tune
	if d.readers, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	if d.met, err = observe.NewMetrics(d.reg, d.name, buildVersion(), runtime.Version()); err != nil {
		return err
	}
	d.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	d.self = d.instance()
	d.opts.maxInFlight = fmt.Sprint(budget)
	return nil
}

// poolConfig reads the database's URL. Errors of pgx leave the password out.
func poolConfig(url, application string, maxConnections int) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("--postgres-url: %w", err)
	}
	config.MaxConns = int32(min(max(maxConnections, 2), math.MaxInt32)) //nolint:gosec // bounded
	config.MaxConnIdleTime = 5 * time.Minute
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = application
	}
	config.ConnConfig.ConnectTimeout = cmp.Or(config.ConnConfig.ConnectTimeout, 10*time.Second)
	return config, nil
}

func (d *daemon) instance() lease.Instance {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	self := lease.Instance{
		ID: d.opts.instanceID, Group: d.opts.group, Binary: d.name, Version: buildVersion(), Hostname: host, PID: os.Getpid(),
		LockKey: mathrand.Int64(), Started: time.Now(),
	}
	if self.ID == "" {
		random := make([]byte, 3)
		_, _ = rand.Read(random) // never fails
		self.ID = fmt.Sprintf("%s-%d-%s", host, self.PID, hex.EncodeToString(random))
	}
	for _, b := range d.registry.Backends() {
		self.Backends = append(append(self.Backends, b.Name), b.Aliases...)
	}
	return self
}

// signals returns a context that ends with the first signal, and one that ends
// when the drain has taken too long or a second signal comes. A third kills.
func (d *daemon) signals(ctx context.Context) (stop, abandon context.Context, cleanUp func()) {
	stop, cancelStop := context.WithCancel(ctx)
	abandon, cancelAbandon := context.WithCancelCause(ctx)
	caught := make(chan os.Signal, 2)
	signal.Notify(caught, syscall.SIGTERM, syscall.SIGINT)
	ended := make(chan struct{})
	go func() {
		defer signal.Stop(caught)
		select {
		case s := <-caught:
			d.log.Info("signal received, draining", "signal", s.String(), "drain_timeout", d.opts.drain.String())
		case <-ended:
			return
		}
		cancelStop()
		timer := time.NewTimer(d.opts.drain)
		defer timer.Stop()
		select {
		case <-caught:
			cancelAbandon(errors.New("second signal"))
		case <-timer.C:
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

// runAll serves HTTP for as long as pipelines run, so that /readyz and /metrics
// answer through the whole drain.
func (d *daemon) runAll(ctx, stop context.Context, ln net.Listener) error {
	stop, lost := context.WithCancel(stop)
	defer lost()
	srv := &http.Server{
		Handler:           observe.Handler(observe.Probes{Health: d.health, Ready: d.ready, Live: func() error { return nil }}, d.reg, d.opts.pprof),
		ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() {
		err := srv.Serve(ln)
		lost() // no metrics, no relay
		served <- err
	}()
	d.supervise(ctx, stop)
	last, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer done()
	shutdownErr := srv.Shutdown(last)
	if errors.Is(shutdownErr, context.DeadlineExceeded) {
		shutdownErr = srv.Close() // somebody holds a connection open
	}
	err := <-served
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	} else if err != nil {
		err = fmt.Errorf("serve metrics: %w", err)
	}
	return errors.Join(err, shutdownErr)
}

func (d *daemon) supervise(ctx, stop context.Context) {
	if !d.awaitCatalog(stop) {
		return
	}
	var budget int64
	_, _ = fmt.Sscan(d.opts.maxInFlight, &budget) // prepare wrote it
	builder := &supervisor.Builder{
		Pool: d.pool, Readers: d.readers, Group: d.opts.group, Owner: d.self.ID, Version: buildVersion(),
		Budget: engine.NewBudget(budget),
	}
	cat := catalog.New(d.registry)
	s := supervisor.New(supervisor.Config{
		Self:     d.self,
		Load:     func(ctx context.Context) (catalog.Snapshot, error) { return cat.Load(ctx, d.pool) },
		Listen:   func(ctx context.Context) (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, d.conn) },
		Interval: d.opts.discovery, Run: builder.Run, Sequences: builder.Sequences, Letters: builder.Letters, Report: builder.Report,
		Drain: d.opts.drain, Metrics: d.met, Logger: d.log,
	}, func(changed func()) supervisor.Keeper {
		return lease.New(lease.Config{
			Connect: func(ctx context.Context) (lease.Wire, error) { return lease.Connect(ctx, d.conn, d.self) },
			Logger:  d.log, Changed: changed,
		})
	})
	d.mu.Lock()
	d.super, d.waiting = s, nil
	d.mu.Unlock()
	sweeping, enough := context.WithCancel(stop)
	var sweeper sync.WaitGroup
	sweeper.Go(func() { retention.Run(sweeping, d.pool, d.log, sweepEvery, retention.Options{}) })
	s.Run(ctx, stop)
	enough()
	sweeper.Wait()
}

// sweepEvery is how often outboxes are looked at for rows past their retention.
const sweepEvery = time.Minute

const catalogRetry = time.Second

// awaitCatalog waits until the database is there and has what a relay needs. It
// says once what is missing, and again when that changes.
func (d *daemon) awaitCatalog(stop context.Context) bool {
	said := ""
	for stop.Err() == nil {
		err := d.checkCatalog(stop)
		if err == nil {
			if said != "" {
				d.log.Info("the database is ready")
			}
			d.warnOfDenied(stop)
			return true
		}
		if stop.Err() != nil {
			return false
		}
		if text := err.Error(); text != said {
			d.log.Error("the database is not ready, will retry", "err", strings.ReplaceAll(text, "\n", "; "))
			said = text
		}
		d.mu.Lock()
		d.waiting = err
		d.mu.Unlock()
		timer := time.NewTimer(catalogRetry*3/4 + mathrand.N(catalogRetry/2))
		select {
		case <-stop.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
	return false
}

func (d *daemon) checkCatalog(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return explainConnect(err)
	}
	defer conn.Release()
	if d.opts.autoMigrate {
		if err := migrate.Up(ctx, conn, migrate.Specs(d.registry.Backends())); err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
	}
	missing, err := migrate.Missing(ctx, conn)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return errors.New(strings.Join(missing, "\n"))
	}
	return nil
}

// warnOfDenied says which outboxes and inboxes the relay may not use, whether or
// not a pipeline does yet. One that does fails by itself, and says why.
func (d *daemon) warnOfDenied(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	denied, err := migrate.Denied(ctx, d.pool)
	switch {
	case err != nil:
		d.log.Warn("could not look for outboxes and inboxes that the relay may not use", "err", err)
	case len(denied) > 0:
		d.log.Warn("some outboxes or inboxes may not be used: pipelines on them fail, others run", "lacks", strings.Join(denied, ", "), "cure", migrate.GrantAccess)
	}
}

func (d *daemon) health() observe.Health {
	d.mu.Lock()
	s, waiting := d.super, d.waiting
	d.mu.Unlock()
	if s != nil {
		h := s.Health()
		h.UptimeSeconds = int64(time.Since(d.started).Seconds())
		return h
	}
	text := strings.ReplaceAll(waiting.Error(), "\n", "; ")
	return observe.Health{
		Status: observe.Unhealthy, UptimeSeconds: int64(time.Since(d.started).Seconds()), Reasons: []string{"PostgreSQL: " + text},
		Binary: d.name, Version: buildVersion(), Instance: d.self.ID, Group: d.opts.group, Postgres: observe.Connection{Error: text},
		Instances: []observe.InstanceStatus{}, Pipelines: []observe.PipelineStatus{},
	}
}

func (d *daemon) ready() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.super == nil {
		return d.waiting
	}
	return d.super.Ready()
}
