package natsrelay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// link is one connection. It never reconnects by itself: the client would send
// again what it had buffered, behind what was published since, and nobody could
// say any more in which order messages arrived.
type link struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	closed chan struct{} // the connection has ended

	mu    sync.Mutex
	cause error                   // what the server said first, before it ended
	raw   net.Conn                // closed to free a write that the network blocks
	deny  context.CancelCauseFunc // ends accountInfo when the user may not ask
}

const dialTimeout = 5 * time.Second

func dial(ctx context.Context, cfg *serverConfig, name string) (*link, error) {
	l := &link{closed: make(chan struct{})}
	opts, err := cfg.options()
	if err != nil {
		return nil, err
	}
	opts = append(opts,
		nats.Name(name), nats.NoReconnect(), nats.SetCustomDialer(dialer{ctx, l}),
		nats.FlusherTimeout(30*time.Second), nats.PingInterval(10*time.Second), nats.MaxPingsOutstanding(2),
		nats.SkipSubjectValidation(), // the sink does it, once for each subject
		nats.ClosedHandler(func(*nats.Conn) { close(l.closed) }),
		nats.ErrorHandler(func(nc *nats.Conn, _ *nats.Subscription, err error) { l.fail(nc, err) }))
	l.nc, err = nats.Connect(strings.Join(cfg.URL, ","), opts...)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, classifyDial(fmt.Errorf("connect to NATS at %s: %w", hosts(cfg.URL), err))
	}
	if cfg.Domain != "" {
		l.js, err = jetstream.NewWithDomain(l.nc, cfg.Domain)
	} else {
		l.js, err = jetstream.New(l.nc)
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("open JetStream at %s: %w", hosts(cfg.URL), err)
	}
	return l, nil
}

// dialer keeps hold of the network connection, for link.cut.
type dialer struct {
	ctx  context.Context //nolint:containedctx // lives for one nats.Connect, which takes no context
	link *link
}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	nd := net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	conn, err := nd.DialContext(d.ctx, network, address)
	if err == nil {
		d.link.mu.Lock()
		d.link.raw = conn
		d.link.mu.Unlock()
	}
	return conn, err
}

// close ends the connection at once, even under a write that is stuck.
func (l *link) close() {
	l.cut()
	l.nc.Close()
}

// cut ends the network connection; the client notices.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.raw != nil {
		_ = l.raw.Close()
	}
}

func (l *link) alive() bool {
	select {
	case <-l.closed:
		return false
	default:
		return l.refused() == nil && !l.nc.IsClosed()
	}
}

// fail keeps the first asynchronous error that says why publishing cannot work.
func (l *link) fail(nc *nats.Conn, err error) {
	if errors.Is(err, nats.ErrSlowConsumer) {
		return
	}
	l.mu.Lock()
	if l.deny != nil && aboutAccountInfo(err) {
		l.deny(err)
		l.mu.Unlock()
		return
	}
	if l.cause == nil {
		l.cause = err
	}
	l.mu.Unlock()
	if errors.Is(err, nats.ErrPermissionViolation) {
		nc.Close() // what was refused will never be answered
	}
}

// accountInfo asks for the account's limits. A user who may not ask for them may
// publish all the same, so a refusal is this call's error and no more: the server
// tells it to the connection, not in an answer.
func (l *link) accountInfo(ctx context.Context) (*jetstream.AccountInfo, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.mu.Lock()
	l.deny = cancel
	l.mu.Unlock()
	info, err := l.js.AccountInfo(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return info, err
}

// aboutAccountInfo reports whether err refuses the question of accountInfo, in
// whatever domain.
func aboutAccountInfo(err error) bool {
	return errors.Is(err, nats.ErrPermissionViolation) && strings.HasSuffix(err.Error(), `API.INFO"`) && strings.Contains(err.Error(), `Publish to "$JS.`)
}

// refused is what the server complained about, if it did.
func (l *link) refused() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause == nil {
		return nil
	}
	return classifyDial(l.cause)
}

// lost says why the connection has ended.
func (l *link) lost() error {
	if err := l.refused(); err != nil {
		return err
	}
	if err := l.nc.LastError(); err != nil {
		return classifyDial(fmt.Errorf("connection to NATS lost: %w", err))
	}
	return errors.New("connection to NATS lost")
}

func (c *serverConfig) options() ([]nats.Option, error) {
	for key, path := range map[string]string{
		"credentials_file": c.Credentials, "nkey_file": c.NKey, "tls_ca": c.TLSCA, "tls_cert": c.TLSCert, "tls_key": c.TLSKey,
	} {
		if err := readable(key, path); err != nil {
			return nil, err
		}
	}
	opts := []nats.Option{nats.Timeout(dialTimeout)}
	if c.Credentials != "" {
		opts = append(opts, nats.UserCredentials(c.Credentials))
	}
	if c.NKey != "" {
		nkey, err := nats.NkeyOptionFromSeed(c.NKey)
		if err != nil {
			return nil, relay.Fatal(fmt.Errorf("key %q: %w", "nkey_file", err))
		}
		opts = append(opts, nkey)
	}
	if c.User != "" {
		opts = append(opts, nats.UserInfo(c.User, c.Password.Reveal()))
	}
	if c.Token != "" {
		opts = append(opts, nats.Token(c.Token.Reveal()))
	}
	if c.TLSCA != "" {
		opts = append(opts, nats.RootCAs(c.TLSCA))
	}
	if c.TLSCert != "" {
		opts = append(opts, nats.ClientCert(c.TLSCert, c.TLSKey))
	}
	return opts, nil
}

// hosts are the servers' addresses without the credentials a URL may hold.
func hosts(urls []string) string {
	shown := make([]string, len(urls))
	for i, u := range urls {
		if !strings.Contains(u, "://") {
			u = "nats://" + u
		}
		if parsed, err := url.Parse(u); err == nil {
			shown[i] = parsed.Host
		} else {
			shown[i] = "(not a URL)"
		}
	}
	return strings.Join(shown, ", ")
}
