package rabbitmqrelay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytls"
)

// link is one connection to the broker, the bytes below it, and whether the
// broker has blocked it.
type link struct {
	*amqp.Connection
	wire    *corkedConn
	watched chan struct{}

	mu      sync.Mutex
	blocked string // the broker's reason, "" when it is not
}

// dial tries cfg's URLs in turn, beginning behind *last, and leaves in *last the
// one that worked.
func dial(ctx context.Context, env relay.Env, cfg *connConfig, last *int) (*link, error) {
	tlsConfig, err := cfg.tlsConfig()
	if err != nil {
		return nil, err
	}
	var errs []error
	urls := cfg.urls()
	for i := range urls {
		at := (*last + i) % len(urls)
		// A clone, because the client writes the node's name into it.
		l, err := dialOne(ctx, env, cfg, urls[at], tlsConfig.Clone())
		if err == nil {
			*last = at
			return l, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func dialOne(ctx context.Context, env relay.Env, cfg *connConfig, url string, tlsConfig *tls.Config) (*link, error) {
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return nil, relay.Fatal(relaycfg.Errorf("url", "is malformed"))
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout.D())
	defer cancel()
	properties := amqp.NewConnectionProperties()
	properties["product"] = "pgtrickle-relay"
	properties.SetClientConnectionName("pgtrickle-relay " + env.Group + "/" + env.Pipeline)
	l := &link{watched: make(chan struct{})}
	l.Connection, err = amqp.DialConfig(url, amqp.Config{
		SASL:            authentication(uri, properties),
		Heartbeat:       cfg.Heartbeat.D(),
		Properties:      properties,
		TLSClientConfig: tlsConfig,
		Dial: func(network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			deadline, _ := ctx.Deadline()
			if err := conn.SetDeadline(deadline); err != nil { // until the handshake is over
				return nil, errors.Join(err, conn.Close())
			}
			l.wire = &corkedConn{Conn: conn}
			context.AfterFunc(ctx, func() {
				if !l.isOpen() {
					_ = conn.Close() // a cancelled handshake
				}
			})
			return l.wire, nil
		},
	})
	if err != nil {
		return nil, classify(fmt.Errorf("connect to RabbitMQ at %s: %w", net.JoinHostPort(uri.Host, fmt.Sprint(uri.Port)), err))
	}
	l.opened()
	go l.watch(env, l.NotifyBlocked(make(chan amqp.Blocking, 1)))
	return l, nil
}

func (l *link) isOpen() bool {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	return l.wire.open
}

func (l *link) opened() {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	l.wire.open = true
}

// watch keeps up with the broker's blocking of publishers until the connection
// ends.
func (l *link) watch(env relay.Env, blockings <-chan amqp.Blocking) {
	defer close(l.watched)
	for b := range blockings {
		l.mu.Lock()
		l.blocked = ""
		if b.Active {
			l.blocked = b.Reason
			env.Logger.Warn("the broker has blocked publishers", "reason", b.Reason)
		} else {
			env.Logger.Info("the broker has unblocked publishers")
		}
		l.mu.Unlock()
	}
}

func (l *link) isBlocked() (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blocked
}

// hangUp closes the connection, politely where that does not take long.
func (l *link) hangUp() error {
	err := l.CloseDeadline(time.Now().Add(time.Second))
	_ = l.wire.Close() // in case the broker does not answer
	<-l.watched
	if errors.Is(err, amqp.ErrClosed) {
		return nil
	}
	return err
}

// authentication offers what the URL asks for.
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
	return []amqp.Authentication{outspoken{auth, properties}}
}

// outspoken asks the broker to say so when it refuses credentials. Without that
// it drops the connection, which looks the same as its going down, and is for an
// operator to cure where that is not. The client sets its capabilities itself,
// just before it asks for the response; there is no other place for one more.
type outspoken struct {
	amqp.Authentication
	properties amqp.Table
}

// Response implements amqp.Authentication.
func (o outspoken) Response() string {
	if capabilities, ok := o.properties["capabilities"].(amqp.Table); ok {
		capabilities["authentication_failure_close"] = true
	}
	return o.Authentication.Response()
}

func (c *connConfig) tlsConfig() (*tls.Config, error) {
	if c.TLSCA == "" && c.TLSCert == "" {
		return nil, nil // the client makes one where the URL says amqps
	}
	cfg, err := relaytls.Client(c.TLSCA, c.TLSCert, c.TLSKey)
	return cfg, relay.Fatal(err)
}

// corkBytes is how much a corked connection holds back.
const corkBytes = 64 << 10

// corkedConn collects what is written while it is corked: the client flushes
// every message on its own, which makes a system call for each.
type corkedConn struct {
	net.Conn
	mu     sync.Mutex
	corked bool
	open   bool // the handshake is over
	buf    []byte
}

// Write implements net.Conn.
func (c *corkedConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.corked && len(c.buf) == 0 {
		return c.Conn.Write(b)
	}
	if len(c.buf)+len(b) > corkBytes {
		if err := c.flush(); err != nil {
			return 0, err
		}
		if len(b) > corkBytes {
			return c.Conn.Write(b)
		}
	}
	c.buf = append(c.buf, b...)
	if !c.corked {
		return len(b), c.flush()
	}
	return len(b), nil
}

func (c *corkedConn) cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = true
}

// send writes what is held back, and goes on corked or not.
func (c *corkedConn) send(corked bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = corked
	return c.flush()
}

func (c *corkedConn) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}
