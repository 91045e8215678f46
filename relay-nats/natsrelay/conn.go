package natsrelay

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// dialTimeout bounds connecting to one server, and a question to JetStream.
const dialTimeout = 5 * time.Second

// conn is one connection. It never reconnects by itself: the client would send its
// buffered messages after newer ones, and the order of a key would be lost.
type conn struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	dialer dialer
	closed chan struct{} // closed when the connection has ended

	mu      sync.Mutex
	refusal error // the first asynchronous error of the server

	denied func(subject string, err error) bool // takes the refusal of a subject, if it can; nil for none
}

// dial connects for the pipeline of env. The server sees its name, and the purpose.
func dial(ctx context.Context, env relay.Env, cfg *connConfig, purpose string) (*conn, error) {
	servers, err := cfg.servers()
	if err != nil {
		return nil, err
	}
	c := &conn{closed: make(chan struct{})}
	c.dialer.Control, c.dialer.memory = env.Control, env.MaxAnswer
	c.dialer.refused = func(err error) { c.refuse(fmt.Errorf("connection to NATS: %w", err)) }
	opts, err := cfg.options(env.Read)
	if err != nil {
		return nil, err
	}
	if cfg.TLS.Configured() {
		c.dialer.wanted = true
		if c.dialer.tls, err = cfg.Client(env.Read); err != nil {
			return nil, relay.Fatal(err)
		}
	}
	opts = append(opts,
		nats.Name("pgtrickle-relay "+env.Pipeline+purpose), nats.NoReconnect(), nats.IgnoreDiscoveredServers(), nats.Timeout(dialTimeout),
		c.dialer.option(servers), nats.SkipHostLookup(), // the dialer needs the name for TLS
		nats.FlusherTimeout(30*time.Second), nats.PingInterval(10*time.Second), nats.MaxPingsOutstanding(2),
		nats.SkipSubjectValidation(), // the sink validates each subject once
		nats.ClosedHandler(func(*nats.Conn) { close(c.closed) }),
		nats.ErrorHandler(func(nc *nats.Conn, _ *nats.Subscription, err error) { c.fail(nc, err) }))

	defer c.dialer.CutAfter(ctx, 0)()
	if c.nc, err = nats.Connect(strings.Join(cfg.URL, ","), opts...); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, classify(fmt.Errorf("connect to NATS at %s: %w", hosts(servers), err))
	}

	if cfg.Domain != "" {
		c.js, err = jetstream.NewWithDomain(c.nc, cfg.Domain)
	} else {
		c.js, err = jetstream.New(c.nc)
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("open JetStream at %s: %w", hosts(servers), err)
	}
	return c, nil
}

// options returns the client's options for credentials. Files are read for each connection.
func (c *connConfig) options(read relaynet.Reader) (opts []nats.Option, err error) {
	if c.Credentials != "" {
		text, err := read(c.Credentials)
		if err != nil {
			return nil, relay.Fatal(relaycfg.Errorf("credentials_file", "%s", err))
		}
		opts = append(opts, nats.UserCredentialBytes(text))
	}
	if c.NKey != "" {
		nkey, err := seedOption(read, c.NKey)
		if err != nil {
			return nil, relay.Fatal(relaycfg.Errorf("nkey_file", "%s", err))
		}
		opts = append(opts, nkey)
	}
	if c.User != "" {
		opts = append(opts, nats.UserInfo(c.User, c.Password.Reveal()))
	}
	if c.Token != "" {
		opts = append(opts, nats.Token(c.Token.Reveal()))
	}
	return opts, nil
}

// seedOption is [nats.NkeyOptionFromSeed] with another way to read the file.
func seedOption(read relaynet.Reader, file string) (nats.Option, error) {
	text, err := read(file)
	if err != nil {
		return nil, err
	}
	pair, err := nkeys.ParseDecoratedNKey(text)
	if err != nil {
		return nil, err
	}
	public, err := pair.PublicKey()
	if err == nil && !nkeys.IsValidPublicUserKey(public) {
		err = errors.New("is no seed of a user")
	}
	return nats.Nkey(public, pair.Sign), err
}

// servers parses the addresses as the client does, whose own error would quote a password.
func (c *connConfig) servers() ([]*url.URL, error) {
	servers := make([]*url.URL, len(c.URL))
	for i, text := range c.URL {
		if !strings.Contains(text, "://") {
			text = "nats://" + text
		}
		var err error
		if servers[i], err = url.Parse(strings.TrimSpace(text)); err != nil {
			return nil, relay.Fatal(relaycfg.Errorf("url", "server %d is not a URL; write a password with %%XX for special characters", i+1))
		}
	}
	return servers, nil
}

// hosts returns the servers' addresses without the credentials a URL may hold.
func hosts(servers []*url.URL) string {
	hosts := make([]string, len(servers))
	for i, server := range servers {
		hosts[i] = server.Host
	}
	return strings.Join(hosts, ", ")
}

// close disconnects at once, even if a write blocks in the network.
func (c *conn) close() {
	c.dialer.Close()
	c.nc.Close()
}

func (c *conn) alive() bool { return c.refused() == nil && !c.nc.IsClosed() }

// fail keeps the first asynchronous error. After a refused publish nothing is
// answered, so the connection ends.
func (c *conn) fail(nc *nats.Conn, err error) {
	if errors.Is(err, nats.ErrSlowConsumer) {
		return
	}
	c.mu.Lock()
	deny := c.denied
	c.mu.Unlock()
	if subject := denied(err); subject != "" && deny != nil && deny(subject, err) {
		return
	}
	c.refuse(err)
	if errors.Is(err, nats.ErrPermissionViolation) {
		nc.Close()
	}
}

// refuse keeps the first reason why the connection is of no more use.
func (c *conn) refuse(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refusal == nil {
		c.refusal = classify(err)
	}
}

// denyTo makes deny take the refusals of subjects.
func (c *conn) denyTo(deny func(subject string, err error) bool) {
	c.mu.Lock()
	c.denied = deny
	c.mu.Unlock()
}

// refused returns the server's first asynchronous error, or nil.
func (c *conn) refused() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refusal
}

// lost returns why the connection has ended.
func (c *conn) lost() error {
	if err := c.refused(); err != nil {
		return err
	}
	if err := c.nc.LastError(); err != nil {
		return classify(fmt.Errorf("connection to NATS lost: %w", err))
	}
	return errors.New("connection to NATS lost")
}

// apiError classifies the error of a question to JetStream. The server's refusal
// goes before the timeout that follows from it.
func (c *conn) apiError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if refused := c.refused(); refused != nil {
		return refused
	}
	return classify(err)
}

// stream finds the stream called name or, without a name, the one that stores
// subject. A missing one is created from create, unless that is nil.
func (c *conn) stream(ctx context.Context, name, subject string, create *jetstream.StreamConfig) (jetstream.Stream, error) {
	if name == "" {
		var err error
		name, err = c.js.StreamNameBySubject(ctx, subject)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil, relay.Fatal(fmt.Errorf("no stream stores subject %q: create one, or set nats_stream and nats_create_if_missing", subject))
		}
		if err != nil {
			return nil, c.apiError(ctx, fmt.Errorf("look up the stream of subject %q: %w", subject, err))
		}
	}

	s, err := c.js.Stream(ctx, name)
	if err == nil {
		return s, nil
	}
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, c.apiError(ctx, fmt.Errorf("look up stream %q: %w", name, err))
	}
	if create == nil {
		return nil, relay.Fatal(fmt.Errorf("stream %q does not exist: create it, or set nats_create_if_missing", name))
	}
	create.Name, create.Storage = name, jetstream.FileStorage
	if s, err = c.js.CreateStream(ctx, *create); errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		s, err = c.js.Stream(ctx, name) // another client created it meanwhile
	}
	if err != nil {
		return nil, c.apiError(ctx, fmt.Errorf("create stream %q for subjects %s: %w", name, strings.Join(create.Subjects, ", "), err))
	}
	return s, nil
}
