package pg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// PoolConfig parses the value of --postgres-url for sessions on the relay's own tables.
// Errors leave the password out.
func PoolConfig(url, application string, maxConnections int) (*pgxpool.Config, error) {
	if url == "" {
		return nil, errors.New("--postgres-url is required (or set PGTRICKLE_RELAY_POSTGRES_URL)")
	}
	config, err := poolConfig("postgres-url", url, application, maxConnections)
	if err != nil {
		return nil, err
	}
	config.ConnConfig.AfterConnect = pinSearchPath
	return config, nil
}

// pinSearchPath lets a session find PostgreSQL's own functions, types and operators
// alone. Otherwise a role that may create objects in a schema of the search path could run
// code with the rights of the session. PostgreSQL prefers a function whose parameters fit
// better. It is no startup parameter, because poolers refuse those that they do not know.
func pinSearchPath(ctx context.Context, conn *pgconn.PgConn) error {
	return conn.Exec(ctx, `SET search_path = pg_catalog, pg_temp`).Close()
}

// DataConfig parses the value of --data-postgres-url, or of --postgres-url if that is
// empty, for sessions that write to users' tables. They keep the role's own search path,
// so that triggers of these tables find what they name. The statements of package inbox
// name the schema of everything. With a login of its own, code of a table's owner that a
// trigger runs has no rights on the relay's tables.
func DataConfig(dataURL, url, application string, maxConnections int) (*pgxpool.Config, error) {
	if dataURL == "" {
		return poolConfig("postgres-url", url, application, maxConnections)
	}
	return poolConfig("data-postgres-url", dataURL, application, maxConnections)
}

// maxLogin bounds the messages of a server until a session is open, and all messages of
// sessions without rows of users, in bytes. pgx allocates the length that a message
// announces, also that of a peer that is no PostgreSQL.
const maxLogin = 1 << 20

// AllowRows lets an open session of a pool receive rows of any length. The server has
// proved by then that it is a PostgreSQL.
func AllowRows(_ context.Context, conn *pgx.Conn) error {
	const maxRow = 1 << 30 // PostgreSQL sends no larger one
	conn.PgConn().Frontend().SetMaxBodyLen(maxRow)
	return nil
}

// WarnUnverified logs which server of config is not verified, if any. flag has its URL.
func WarnUnverified(log *slog.Logger, flag string, config *pgxpool.Config) {
	if weak := relaynet.UnverifiedPostgres(&config.ConnConfig.Config); weak != "" {
		log.Warn("PostgreSQL server is not verified", "flag", "--"+flag, "problem", weak, "cure", "set sslmode=verify-full")
	}
}

func poolConfig(flag, url, application string, maxConnections int) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}

	relaynet.VerifyPostgres(&config.ConnConfig.Config, url)
	config.ConnConfig.MaxProtocolMessageBodyLen = maxLogin
	config.ConnConfig.AfterNetConnect = relaynet.RecognisePostgres("--"+flag, "sslmode")
	config.AfterConnect = AllowRows

	// pgx sends and expects UTF-8. In a database of another encoding PostgreSQL then
	// converts each text, or refuses it, where it would store the bytes as they are.
	config.ConnConfig.RuntimeParams["client_encoding"] = "UTF8"
	// pgx escapes for it where it cannot send parameters, as through some poolers.
	config.ConnConfig.RuntimeParams["standard_conforming_strings"] = "on"
	config.MaxConns = int32(min(max(maxConnections, 2), math.MaxInt32))
	config.MaxConnIdleTime = 5 * time.Minute
	config.ConnConfig.ConnectTimeout = cmp.Or(config.ConnConfig.ConnectTimeout, 10*time.Second)
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = application
	}
	return config, nil
}

// catalogDenied matches what PostgreSQL reports of the relay's own objects.
var catalogDenied = regexp.MustCompile(`permission denied for (schema pgtrickle|\w+ _?relay_\w+)`)

// Explain adds what an operator can do about a standby, a session that may only read, or a
// pooler that mixes sessions. It does the same for a role that may not use the catalog, and
// returns any other error as it is.
func Explain(err error) error {
	hint := ""
	switch State(err) {
	case pgerrcode.ReadOnlySQLTransaction:
		hint = "connect to the primary; if it is, set default_transaction_read_only to off for the role"
	case pgerrcode.ObjectNotInPrerequisiteState:
		if !strings.Contains(err.Error(), "recovery is in progress") {
			return err
		}
		hint = "connect to the primary, or to several hosts with target_session_attrs=read-write"
	case pgerrcode.InsufficientPrivilege:
		if !catalogDenied.MatchString(err.Error()) {
			return err
		}
		hint = "let the owner run SELECT pgtrickle.relay_grant_access(), and GRANT pgtrickle_relay TO the role"
	case pgerrcode.DuplicatePreparedStatement, pgerrcode.InvalidSQLStatementName:
		hint = "connect directly, or through a pooler in session mode"
	default:
		return err
	}
	return fmt.Errorf("%w; %s", err, hint)
}

// ExplainConnect adds what an operator can do about a failed connection.
func ExplainConnect(err error) error {
	if wrong, ok := errors.AsType[*relaynet.WrongPeerError](err); ok {
		return fmt.Errorf("connect to PostgreSQL: %w", wrong) // what pgx tried before would hide it
	}
	err = relaynet.PostgresCause(err)
	if cure := relaynet.PostgresTLSCure(err); cure != "" {
		return fmt.Errorf("connect to PostgreSQL: %w; %s", err, cure)
	}
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

// OneLine returns the text of err on one line. Errors of pgx and joined ones have several.
func OneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
