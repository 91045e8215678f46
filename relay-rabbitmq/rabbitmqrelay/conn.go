package rabbitmqrelay

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// conn is one connection to the broker.
type conn struct {
	*amqp.Connection
	dialer  relaynet.Dialer
	guard   *relaynet.Guarded // nil until there is a connection
	cork    *corkedConn
	watched chan struct{}

	mu      sync.Mutex
	blocked string // the broker's reason for blocking publishers, empty without
}

// dial tries the nodes in turn, beginning with number *last, and leaves in *last
// the one that answered.
func (c *connConfig) dial(ctx context.Context, env relay.Env, last *int) (*conn, error) {
	var errs []error
	urls := c.urls()
	for i := range urls {
		at := (*last + i) % len(urls)
		made, err := c.dialOne(ctx, env, urls[at])
		if err == nil {
			*last = at
			return made, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (c *connConfig) dialOne(ctx context.Context, env relay.Env, url string) (*conn, error) {
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return nil, relay.Fatal(relaycfg.Errorf("url", "is malformed"))
	}
	tlsConfig, err := c.tlsConfig(uri, env.Read)
	if err != nil {
		return nil, relay.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout.D())
	defer cancel()
	made := &conn{watched: make(chan struct{})}
	made.dialer.Timeout, made.dialer.TLS, made.dialer.Control = c.Timeout.D(), tlsConfig, env.Control
	made.dialer.Wrap = func(conn net.Conn) net.Conn {
		made.guard = newGuard(conn, env.MaxAnswer)
		return made.guard
	}
	stop := made.dialer.CutAfter(ctx, 0) // ends a handshake that is cancelled or takes too long
	defer stop()

	properties := amqp.NewConnectionProperties()
	properties["product"] = "pgtrickle-relay"
	properties.SetClientConnectionName("pgtrickle-relay " + env.Group + "/" + env.Pipeline)
	url = "amqp" + url[len(uri.Scheme):] // the dialer does TLS
	made.Connection, err = amqp.DialConfig(url, amqp.Config{
		SASL:       authentication(uri, properties),
		Heartbeat:  c.Heartbeat.D(),
		Properties: properties,
		FrameSize:  maxFrame,
		Dial: func(network, _ string) (net.Conn, error) {
			raw, err := made.dialer.DialContext(ctx, network, net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)))
			if err != nil {
				return nil, err
			}
			made.cork = &corkedConn{Conn: raw, buf: bufio.NewWriterSize(raw, corkBytes)}
			return made.cork, nil
		},
	})
	if err != nil {
		if refused := made.guard.Err(); refused != nil {
			err = refused
		} else if ctx.Err() == context.DeadlineExceeded && !errors.Is(err, context.DeadlineExceeded) { // the dialer has cut it
			err = fmt.Errorf("no answer within %s; check host, port and rabbitmq_tls", c.Timeout.D())
		} else if broken, ok := errors.AsType[*amqp.Error](err); ok && broken.Code == amqp.FrameError && !broken.Server {
			err = errors.New(broken.Reason) // the client's own, which it calls an exception
		}
		return nil, classify(fmt.Errorf("connect to RabbitMQ at %s: %w", net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)), err))
	}
	go made.watch(env, made.NotifyBlocked(make(chan amqp.Blocking, 1)))
	return made, nil
}

// tlsConfig returns nil for a node without TLS. The URL can name files, too, as for any
// other client of the broker; read permits them.
func (c *connConfig) tlsConfig(uri amqp.URI, read relaynet.Reader) (*tls.Config, error) {
	if uri.Scheme != "amqps" {
		return nil, nil
	}
	if c.TLS.Configured() {
		return c.TLS.Client(read)
	}
	return relaynet.TLS{
		CA: uri.CACertFile, Cert: uri.CertFile, Key: relaycfg.Secret(uri.KeyFile), ServerName: uri.ServerName,
	}.Client(read)
}

// watch records whether the broker blocks publishers, until the connection ends.
func (c *conn) watch(env relay.Env, blockings <-chan amqp.Blocking) {
	defer close(c.watched)
	for b := range blockings {
		reason := ""
		if b.Active {
			reason = b.Reason
			env.Logger.Warn("broker has blocked publishers", "reason", reason)
		} else {
			env.Logger.Info("broker has unblocked publishers")
		}
		c.mu.Lock()
		c.blocked = reason
		c.mu.Unlock()
	}
}

// isBlocked returns the broker's reason for blocking publishers, or "".
func (c *conn) isBlocked() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blocked
}

// close closes the connection, and waits a second for the broker's answer.
func (c *conn) close() error {
	err := c.CloseDeadline(time.Now().Add(time.Second))
	c.dialer.Close()
	<-c.watched
	if errors.Is(err, amqp.ErrClosed) {
		return nil
	}
	return err
}

// authentication offers the mechanism that the URL asks for.
func authentication(uri amqp.URI, properties amqp.Table) []amqp.Authentication {
	var auth amqp.Authentication = uri.PlainAuth()
	for _, mechanism := range uri.AuthMechanism {
		switch mechanism {
		case "external", "EXTERNAL":
			auth = &amqp.ExternalAuth{}
		case "amqplain", "AMQPLAIN":
			auth = uri.AMQPlainAuth()
		}
	}
	return []amqp.Authentication{reporting{auth, properties}}
}

// reporting asks the broker to report refused credentials. Without that it drops
// the connection, which looks like a broker that goes down. The client sets its
// capabilities just before it asks for the response, so they are extended here.
type reporting struct {
	amqp.Authentication
	properties amqp.Table
}

// Response implements amqp.Authentication.
func (r reporting) Response() string {
	if capabilities, ok := r.properties["capabilities"].(amqp.Table); ok {
		capabilities["authentication_failure_close"] = true
	}
	return r.Authentication.Response()
}

// corkBytes is how much a corked connection holds back.
const corkBytes = 64 << 10

// corkedConn collects what is written while it is corked: the client flushes
// every message on its own, which costs a system call each.
type corkedConn struct {
	net.Conn
	mu     sync.Mutex
	corked bool
	buf    *bufio.Writer
}

// Write implements net.Conn.
func (c *corkedConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.buf.Write(b)
	if err == nil && !c.corked {
		err = c.buf.Flush()
	}
	return n, err
}

// flush writes what is held back, and corks the connection or not.
func (c *corkedConn) flush(corked bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = corked
	return c.buf.Flush()
}

// withChannel gives do a channel of its own: the broker closes a channel with its refusal.
func withChannel(conn *conn, do func(*amqp.Channel) error) error {
	channel, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", err)
	}
	defer func() { _ = channel.Close() }()
	return do(channel)
}
