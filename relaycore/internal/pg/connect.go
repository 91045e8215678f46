package pg

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgxpool"
)

// PoolConfig parses the value of --postgres-url. Errors leave the password out.
func PoolConfig(url, application string, maxConnections int) (*pgxpool.Config, error) {
	if url == "" {
		return nil, errors.New("--postgres-url is required (or set PGTRICKLE_RELAY_POSTGRES_URL)")
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("--postgres-url: %w", err)
	}

	config.MaxConns = int32(min(max(maxConnections, 2), math.MaxInt32))
	config.MaxConnIdleTime = 5 * time.Minute
	config.ConnConfig.ConnectTimeout = cmp.Or(config.ConnConfig.ConnectTimeout, 10*time.Second)
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = application
	}
	return config, nil
}

// ExplainConnect adds what an operator can do about a failed connection.
func ExplainConnect(err error) error {
	hint := "is the server running, and does it accept connections at the address in --postgres-url?"

	switch State(err) {
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
