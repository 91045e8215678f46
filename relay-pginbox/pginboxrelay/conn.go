package pginboxrelay

import (
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// connectTimeout applies where the URL sets no connect_timeout.
const connectTimeout = 10 * time.Second

// keepAlive finds a peer that is gone. A batch that waits for one is bounded by
// confirm_timeout.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
}

// maxMessage bounds a message of the server, which sends no more than the definition of
// a table. A peer that is no PostgreSQL could announce a gigabyte, and pgx would
// allocate it.
const maxMessage = 1 << 20

// ownPassword returns text with an empty password and password file where it names none.
// pgx would take those of the process, which are for the relay's own database.
func ownPassword(text string, keys []string) string {
	for _, key := range []string{"password", "passfile"} {
		switch {
		case slices.Contains(keys, key):
		case !strings.HasPrefix(text, "postgres"):
			text = key + "='' " + text
		case strings.HasSuffix(text, "?"):
			text += key + "="
		case strings.Contains(text, "?"):
			text += "&" + key + "="
		default:
			text += "?" + key + "="
		}
	}
	return text
}

// pool returns the configuration of the connection pool.
func (c *sinkConfig) pool(env relay.Env) (*pgxpool.Config, error) {
	text := c.URL.Reveal()
	for _, file := range relaynet.PostgresFiles(text) {
		if _, err := env.Read(file); err != nil { // pgx reads it by its name
			return nil, relaycfg.Errorf("url", "names a file that cannot be used: %s", err)
		}
	}
	keys := relaynet.PostgresKeys(text)
	pc, err := pgxpool.ParseConfig(ownPassword(text, keys))
	if err != nil {
		// pgx's error quotes the URL, and may not find every spelling of a password in it.
		return nil, relaycfg.Errorf("url", "is not a PostgreSQL connection URL or keyword/value string")
	}
	relaynet.VerifyPostgres(&pc.ConnConfig.Config, text)
	pc.MaxConns = int32(min(c.MaxConnections, 1000))
	pc.ConnConfig.MaxProtocolMessageBodyLen = maxMessage
	pc.ConnConfig.AfterNetConnect = relaynet.RecognisePostgres("pg_inbox_url", "sslmode in it")
	// pgx sends UTF-8. PostgreSQL converts it to the database's encoding, or refuses it.
	pc.ConnConfig.RuntimeParams["client_encoding"] = "UTF8"
	if pc.ConnConfig.ConnectTimeout == 0 {
		pc.ConnConfig.ConnectTimeout = connectTimeout
	}
	dialer := net.Dialer{KeepAliveConfig: keepAlive(), Control: env.Control}
	pc.ConnConfig.DialFunc = dialer.DialContext
	if pc.ConnConfig.RuntimeParams["application_name"] == "" {
		pc.ConnConfig.RuntimeParams["application_name"] = strings.TrimSpace("pgtrickle-relay " + env.Pipeline)
	}
	return pc, nil
}
