package relaycmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/daemon"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pipeline"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// connect opens a pool for a command and checks that the database answers.
func (p *program) connect(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := pg.PoolConfig(p.common.postgresURL, p.name, 4)
	if err != nil {
		return nil, err
	}
	config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.SeverityUnlocalized == "WARNING" {
			fmt.Fprintln(p.stderr, "warning:", n.Message)
		}
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}

	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, pg.ExplainConnect(err)
	}
	return pool, nil
}

// database is a database with a catalog.
type database struct {
	pipelines catalog.Snapshot
	store     store.Store // of the group
	runner    *pipeline.Runner
}

// withDatabase connects, checks that the catalog is installed, reads the pipelines,
// and calls use. A timeout of 0 is none.
func (p *program) withDatabase(ctx context.Context, timeout time.Duration, use func(context.Context, *database) error) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}

	pool, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()

	missing, err := migrate.Missing(ctx, pool)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return errors.New(strings.Join(missing, "\n"))
	}
	pipelines, err := catalog.Read(ctx, pool, p.registry, p.common.access)
	if err != nil {
		return err
	}

	config, err := pg.DataConfig(p.common.dataURL, p.common.postgresURL, p.name, 2)
	if err != nil {
		return err
	}
	inboxes, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer inboxes.Close()

	group := p.common.group
	return use(ctx, &database{
		pipelines: pipelines,
		store:     store.New(pool, group),
		runner: &pipeline.Runner{
			Pool: pool, Readers: pool, Inboxes: inboxes, Group: group, Owner: p.name, Version: buildVersion(), Budget: daemon.Budget(),
		},
	})
}

// forward returns the forward pipeline of that name.
func (db *database) forward(name string) (catalog.Pipeline, error) {
	var names []string
	for _, pl := range db.pipelines {
		if pl.Name == name && pl.Direction == relay.Forward {
			return pl, pl.Err
		}
		names = append(names, pl.Name)
	}

	if len(db.pipelines.Find(name)) > 0 {
		return catalog.Pipeline{}, fmt.Errorf(
			"pipeline %q is a reverse pipeline: its messages are in the broker, and reading them would consume them", name)
	}
	return catalog.Pipeline{}, fmt.Errorf("pipeline %q not found; there are: %s", name, cmp.Or(strings.Join(names, ", "), "none"))
}
