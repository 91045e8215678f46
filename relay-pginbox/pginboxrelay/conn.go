package pginboxrelay

import (
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// connectTimeout applies where the URL sets no connect_timeout.
const connectTimeout = 10 * time.Second

// keepAlive finds a peer that is gone. A batch that waits for one is bounded by
// confirm_timeout.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
}

// pool returns the configuration of the connection pool.
func (c *sinkConfig) pool(env relay.Env) (*pgxpool.Config, error) {
	pc, err := pgxpool.ParseConfig(c.URL.Reveal())
	if err != nil {
		// pgx's error quotes the URL, and may not find every spelling of a password in it.
		return nil, relaycfg.Errorf("url", "is not a PostgreSQL connection URL or keyword/value string")
	}
	pc.MaxConns = int32(min(c.MaxConnections, 1000))
	if pc.ConnConfig.ConnectTimeout == 0 {
		pc.ConnConfig.ConnectTimeout = connectTimeout
	}
	dialer := net.Dialer{KeepAliveConfig: keepAlive()}
	pc.ConnConfig.DialFunc = dialer.DialContext
	if pc.ConnConfig.RuntimeParams["application_name"] == "" {
		pc.ConnConfig.RuntimeParams["application_name"] = strings.TrimSpace("pgtrickle-relay " + env.Pipeline)
	}
	return pc, nil
}
