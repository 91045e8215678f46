package relaycmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pipeline"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// load connects, checks that the catalog is installed, and reads the pipelines.
func (p *program) load(ctx context.Context) (*pgxpool.Pool, catalog.Snapshot, error) {
	pool, err := p.connect(ctx)
	if err != nil {
		return nil, nil, err
	}

	missing, err := migrate.Missing(ctx, pool)
	if err == nil && len(missing) > 0 {
		err = errors.New(strings.Join(missing, "\n"))
	}
	if err != nil {
		pool.Close()
		return nil, nil, err
	}

	snapshot, err := catalog.New(p.registry).Load(ctx, pool)
	if err != nil {
		pool.Close()
		return nil, nil, err
	}
	return pool, snapshot, nil
}

// connect opens a pool for a command and checks that the database answers.
func (p *program) connect(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := p.poolConfig(4)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}

	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, explainConnect(err)
	}
	return pool, nil
}

// poolConfig parses the URL of the database. Errors of pgx leave the password out.
func (p *program) poolConfig(maxConnections int) (*pgxpool.Config, error) {
	if p.common.postgresURL == "" {
		return nil, errors.New("--postgres-url is required (or set PGTRICKLE_RELAY_POSTGRES_URL)")
	}
	config, err := pgxpool.ParseConfig(p.common.postgresURL)
	if err != nil {
		return nil, fmt.Errorf("--postgres-url: %w", err)
	}

	config.MaxConns = int32(min(max(maxConnections, 2), math.MaxInt32))
	config.MaxConnIdleTime = 5 * time.Minute
	config.ConnConfig.ConnectTimeout = cmp.Or(config.ConnConfig.ConnectTimeout, 10*time.Second)
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = p.name
	}
	return config, nil
}

// explainConnect adds what an operator can do about a failed connection.
func explainConnect(err error) error {
	hint := "is the server running, and does it accept connections at the address in --postgres-url?"

	switch pg.State(err) {
	case "": // not an answer of the server
	case pgerrcode.InvalidPassword, pgerrcode.InvalidAuthorizationSpecification:
		hint = "check user and password in --postgres-url, and the server's pg_hba.conf"
	case pgerrcode.InvalidCatalogName:
		hint = "check the database's name in --postgres-url"
	case pgerrcode.TooManyConnections:
		hint = "the server has no free connections; raise its max_connections or lower --max-connections"
	case pgerrcode.CannotConnectNow:
		hint = "the server is starting or stopping"
	default:
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	return fmt.Errorf("connect to PostgreSQL: %w; %s", err, hint)
}

// builder opens the ends of pipelines for a command.
func (p *program) runner(pool *pgxpool.Pool) *pipeline.Runner {
	return &pipeline.Runner{Pool: pool, Readers: pool, Group: p.common.group, Owner: p.name, Version: buildVersion()}
}

// forward returns the valid forward pipeline of that name.
func forward(snapshot catalog.Snapshot, name string) (catalog.Pipeline, error) {
	var names []string
	for _, pl := range snapshot {
		if pl.Name == name && pl.Direction == relay.Forward {
			return pl, pl.Err
		}
		names = append(names, pl.Name)
	}

	if len(snapshot.Find(name)) > 0 {
		return catalog.Pipeline{}, fmt.Errorf(
			"pipeline %q is a reverse pipeline: its messages are in the broker, and reading them would consume them", name)
	}
	return catalog.Pipeline{}, fmt.Errorf("pipeline %q not found; there are: %s", name, cmp.Or(strings.Join(names, ", "), "none"))
}
