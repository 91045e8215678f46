package pginboxrelay

import (
	"context"
	"crypto/tls"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
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

// namesPassword reports whether a connection string has a password, or the file that
// has it. pgx would take another one from PGPASSWORD or the process's password file.
func namesPassword(text string) bool {
	if u, err := url.Parse(text); err == nil && u.User != nil {
		if _, has := u.User.Password(); has {
			return true
		}
	}
	return strings.Contains(text, "password=") || strings.Contains(text, "password =") || strings.Contains(text, "passfile")
}

var peer = relaynet.Peer{Key: "pg_inbox_url", Name: "PostgreSQL server", TLS: "sslmode in it"}

// recognise refuses a server that is no PostgreSQL. A TLS connection stays as it is:
// pgx binds the login to its certificate, for which it must see the connection itself.
func recognise(_ context.Context, _ *pgconn.Config, conn net.Conn) (net.Conn, error) {
	if _, ok := conn.(*tls.Conn); ok {
		return conn, nil
	}
	return relaynet.Guard(conn, peer, peer.Begins("RENv")), nil
}

// pool returns the configuration of the connection pool.
func (c *sinkConfig) pool(env relay.Env) (*pgxpool.Config, error) {
	pc, err := pgxpool.ParseConfig(c.URL.Reveal())
	if err != nil {
		// pgx's error quotes the URL, and may not find every spelling of a password in it.
		return nil, relaycfg.Errorf("url", "is not a PostgreSQL connection URL or keyword/value string")
	}
	pc.MaxConns = int32(min(c.MaxConnections, 1000))
	pc.ConnConfig.MaxProtocolMessageBodyLen = maxMessage
	pc.ConnConfig.AfterNetConnect = recognise
	// pgx sends UTF-8. PostgreSQL converts it to the database's encoding, or refuses it.
	pc.ConnConfig.RuntimeParams["client_encoding"] = "UTF8"
	if !namesPassword(c.URL.Reveal()) {
		pc.ConnConfig.Password = "" // it would be that of the relay's own database
	}
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
