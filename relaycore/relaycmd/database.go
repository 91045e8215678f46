package relaycmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/daemon"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pipeline"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
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
	notes     []string // about all pipelines
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

	owners, err := extensionOwns(ctx, pool)
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
		notes:     append(unverified(pool, inboxes), owners...),
		runner: &pipeline.Runner{
			Pool: pool, Readers: pool, Inboxes: inboxes, Group: group, Owner: p.name, Version: buildVersion(), Budget: daemon.Budget(),
		},
	})
}

// extensionOwns notes that pipelines have no owners, if so.
func extensionOwns(ctx context.Context, pool *pgxpool.Pool) (notes []string, err error) {
	const query = `SELECT extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
		WHERE d.deptype = 'e' AND d.classid = 'pg_proc'::regclass AND d.objid = to_regprocedure('pgtrickle.enable_relay(text)')`
	var name string
	err = pool.QueryRow(ctx, query).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return []string{"pipelines have no owners here: the grants of extension " + name + " decide which roles may change them"}, err
}

// unverified warns about the servers of pools that need not prove their names.
func unverified(pools ...*pgxpool.Pool) (notes []string) {
	for _, pool := range pools {
		if weak := relaynet.UnverifiedPostgres(&pool.Config().ConnConfig.Config); weak != "" {
			notes = append(notes, "WARNING: "+weak+"; set sslmode=verify-full in the URL")
		}
	}
	return slices.Compact(notes)
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
