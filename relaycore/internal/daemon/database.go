package daemon

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/supervisor"
)

// phase is where the daemon is between its start and running pipelines. HTTP
// handlers read it while the daemon moves on.
type phase struct {
	started time.Time

	mu      sync.Mutex
	super   *supervisor.Supervisor // nil while the daemon waits for the database
	waiting error                  // why it waits
}

func (p *phase) start() {
	p.started = time.Now()
	p.wait(errors.New("starting"))
}

func (p *phase) wait(reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = reason
}

func (p *phase) run(s *supervisor.Supervisor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.super = s
}

func (p *phase) current() (*supervisor.Supervisor, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.super, p.waiting
}

// ready reports why the process cannot run pipelines.
func (p *phase) ready() error {
	super, waiting := p.current()
	if super == nil {
		return waiting
	}
	return super.Ready()
}

func (d *daemon) health() observe.Health {
	uptime := int64(time.Since(d.phase.started).Seconds())
	super, waiting := d.phase.current()
	if super != nil {
		h := super.Health()
		h.UptimeSeconds = uptime
		return h
	}

	text := pg.OneLine(waiting)
	return observe.Health{
		Status: observe.Unhealthy, UptimeSeconds: uptime, Reasons: []string{"PostgreSQL: " + text},
		Binary: d.cfg.Name, Version: d.cfg.Version, Instance: d.self.ID, Group: d.cfg.Group, Postgres: observe.Connection{Error: text},
		Instances: []observe.InstanceStatus{}, Pipelines: []observe.PipelineStatus{},
	}
}

const (
	databaseRetry = time.Second
	checkTimeout  = 30 * time.Second
)

// awaitDatabase waits until the database answers and has what a relay needs. It
// returns false if stop ends.
func (d *daemon) awaitDatabase(stop context.Context) bool {
	if !d.phase.await(stop, d.checkDatabase, d.log) {
		return false
	}
	d.warnOfDenied(stop)
	return true
}

// await calls check until it succeeds. It logs an error once, and again when it
// changes. It returns false if stop ends.
func (p *phase) await(stop context.Context, check func(context.Context) error, log *slog.Logger) bool {
	logged := ""
	for stop.Err() == nil {
		err := check(stop)
		switch {
		case stop.Err() != nil:
			return false
		case err == nil:
			if logged != "" {
				log.Info("database ready")
			}
			return true
		}

		p.wait(err)
		if text := pg.OneLine(err); text != logged {
			log.Error("database not ready, retrying", "err", text)
			logged = text
		}

		_ = backoff.Sleep(stop, backoff.Jitter(databaseRetry))
	}
	return false
}

func (d *daemon) checkDatabase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()

	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return pg.ExplainConnect(err)
	}
	defer conn.Release()

	if d.cfg.AutoMigrate {
		report, err := migrate.Install(ctx, conn, migrate.Options{Backends: migrate.Specs(d.cfg.Registry.Backends()), Owner: d.cfg.Owner})
		if err != nil {
			return err
		}
		for _, s := range report.HandedOver {
			d.log.Warn("superuser's object handed over", "ran", s)
		}
		for _, s := range report.ToRun {
			d.log.Warn("another role must grant", "run", s)
		}
	}
	missing, err := migrate.Missing(ctx, conn)
	if err == nil && len(missing) > 0 {
		err = errors.New(strings.Join(missing, "\n"))
	}
	return err
}

// warnOfDenied logs which outboxes and inboxes the role of the relay may not use.
// Pipelines on them fail alone, and report why.
func (d *daemon) warnOfDenied(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()

	denied, err := migrate.Denied(ctx, d.pool)
	switch {
	case err != nil:
		d.log.Warn("permissions not checked", "err", err)
	case len(denied) > 0:
		d.log.Warn("some outboxes or inboxes denied", "missing", strings.Join(denied, ", "), "cure", migrate.GrantAccess)
	}
}
