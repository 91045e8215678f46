package redisrelay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytls"
)

type topology int

const (
	single topology = iota
	cluster
	sentinel
)

// address is a URL taken apart: what kind of Redis there is, and the URL in the
// form that go-redis's own parser for that kind understands.
type address struct {
	kind topology
	url  string
}

// parseURL adds two things to go-redis's URLs: schemes that say which kind of
// Redis there is, and several hosts in one URL. The kind can also be told from
// go-redis's own query parameters, addr and master_name. Its errors never quote
// the URL, which may hold a password.
func parseURL(raw string) (address, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return address{}, relaycfg.Errorf("url", "has no scheme; wants redis://HOST:6379")
	}
	scheme, kindName, _ := strings.Cut(scheme, "+")
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	userinfo, hosts := "", authority
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		userinfo, hosts = authority[:i+1], authority[i+1:]
	}
	first, others, several := strings.Cut(hosts, ",")
	path, query, _ := strings.Cut(tail, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return address{}, relaycfg.Errorf("url", "has a malformed query")
	}
	if several {
		for host := range strings.SplitSeq(others, ",") {
			values.Add("addr", host)
		}
	}
	a := address{}
	switch {
	case !slices.Contains([]string{"redis", "rediss", "unix"}, scheme):
		return address{}, relaycfg.Errorf("url", "has the unknown scheme %q; wants redis, rediss, unix, redis+cluster or redis+sentinel", scheme)
	case kindName == "cluster":
		a.kind = cluster
	case kindName == "sentinel", kindName == "" && values.Has("master_name"):
		a.kind = sentinel
		// redis+sentinel://host:26379/mymaster/0 is the form other clients know.
		if parts := strings.Split(strings.Trim(path, "/"), "/"); !values.Has("master_name") && parts[0] != "" {
			values.Set("master_name", parts[0])
			path = "/" + strings.Join(parts[1:], "/")
		}
		if !values.Has("master_name") {
			return address{}, relaycfg.Errorf("url", "names no master; wants redis+sentinel://HOST:26379/MASTER")
		}
	case kindName == "" && values.Has("addr"):
		a.kind = cluster
	case kindName != "":
		return address{}, relaycfg.Errorf("url", "has the unknown scheme %q; wants redis, rediss, unix, redis+cluster or redis+sentinel", scheme+"+"+kindName)
	}
	a.url = scheme + "://" + userinfo + first + path
	if len(values) > 0 {
		a.url += "?" + values.Encode()
	}
	if _, err := a.options(); err != nil {
		return address{}, err
	}
	return a, nil
}

// options runs go-redis's parser; what it returns is one of its option structs.
func (a address) options() (any, error) {
	var opts any
	var err error
	switch a.kind {
	case cluster:
		opts, err = redis.ParseClusterURL(a.url)
	case sentinel:
		opts, err = redis.ParseFailoverURL(a.url)
	default:
		opts, err = redis.ParseURL(a.url)
	}
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		return nil, relaycfg.Errorf("url", "is malformed: %s", urlErr.Err)
	}
	if err != nil {
		return nil, relaycfg.Errorf("url", "is malformed: %s", strings.ReplaceAll(strings.TrimPrefix(err.Error(), "redis: "), a.url, "[redacted]"))
	}
	return opts, nil
}

// writeBuffer holds a fifth of a usual transaction; with go-redis's 32 KiB a
// quarter more of the time goes to the kernel.
const writeBuffer = 128 << 10

// connect makes a client as newClients does.
func connect(cfg connConfig, conns *connSet, pool int) (redis.UniversalClient, error) {
	open, err := newClients(cfg, conns, pool)
	if err != nil {
		return nil, err
	}
	return open(), nil
}

// newClients returns what makes clients that send nothing twice: go-redis's
// retries are off, because a batch whose reply was lost may have been carried
// out. Every connection is remembered in conns.
func newClients(cfg connConfig, conns *connSet, pool int) (open func() redis.UniversalClient, err error) {
	a, err := parseURL(cfg.URL.Reveal())
	if err != nil {
		return nil, err
	}
	opts, err := a.options()
	if err != nil {
		return nil, err
	}
	quiet := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	timeout := cfg.Timeout.D()
	switch o := opts.(type) {
	case *redis.ClusterOptions:
		if o.TLSConfig, err = cfg.tlsConfig(o.TLSConfig); err != nil {
			return nil, err
		}
		o.Username, o.Password = cfg.credentials(o.Username, o.Password)
		o.DialTimeout, o.ReadTimeout, o.WriteTimeout = timeout, timeout, timeout
		o.MaxRetries, o.DialerRetries, o.PoolSize = -1, 1, pool
		o.MaxRedirects = 3 // a redirected transaction was refused as a whole
		o.MaintNotificationsConfig, o.WriteBufferSize = quiet, writeBuffer
		o.Dialer = conns.dialer(o.TLSConfig, timeout)
		return func() redis.UniversalClient { return redis.NewClusterClient(o) }, nil
	case *redis.FailoverOptions:
		if o.TLSConfig, err = cfg.tlsConfig(o.TLSConfig); err != nil {
			return nil, err
		}
		// go-redis takes the URL's user for the sentinels' alone.
		if o.Username == "" && o.Password == "" {
			o.Username, o.Password = o.SentinelUsername, o.SentinelPassword
		}
		o.Username, o.Password = cfg.credentials(o.Username, o.Password)
		o.DialTimeout, o.ReadTimeout, o.WriteTimeout = timeout, timeout, timeout
		o.MaxRetries, o.DialerRetries, o.PoolSize = -1, 1, pool
		o.WriteBufferSize = writeBuffer
		o.Dialer = conns.dialer(o.TLSConfig, timeout)
		return func() redis.UniversalClient { return redis.NewFailoverClient(o) }, nil
	case *redis.Options:
		if o.TLSConfig, err = cfg.tlsConfig(o.TLSConfig); err != nil {
			return nil, err
		}
		o.Username, o.Password = cfg.credentials(o.Username, o.Password)
		o.DialTimeout, o.ReadTimeout, o.WriteTimeout = timeout, timeout, timeout
		o.MaxRetries, o.DialerRetries, o.PoolSize = -1, 1, pool
		o.MaintNotificationsConfig, o.WriteBufferSize = quiet, writeBuffer
		o.Dialer = conns.dialer(o.TLSConfig, timeout)
		return func() redis.UniversalClient { return redis.NewClient(o) }, nil
	}
	return nil, fmt.Errorf("unknown options %T", opts)
}

func (c *connConfig) credentials(user, password string) (string, string) {
	if c.Username != "" {
		user = c.Username
	}
	if c.Password != "" {
		password = c.Password.Reveal()
	}
	return user, password
}

func (c *connConfig) tlsConfig(fromURL *tls.Config) (*tls.Config, error) {
	if fromURL == nil && !c.TLS && c.TLSCA == "" && c.TLSCert == "" {
		return nil, nil
	}
	cfg, err := relaytls.Client(c.TLSCA, c.TLSCert, c.TLSKey)
	if err != nil {
		return nil, relay.Fatal(err)
	}
	if fromURL != nil {
		// The server's name is each connection's own; go-redis would use the first.
		cfg.InsecureSkipVerify = fromURL.InsecureSkipVerify //nolint:gosec // asked for by skip_verify in the URL
	}
	return cfg, nil
}

// connSet knows a client's open connections. go-redis does not let go of a read
// when a context is cancelled; closing the connection under it does.
type connSet struct {
	mu     sync.Mutex
	open   map[*trackedConn]struct{}
	broken bool // off: what is being dialled comes too late
}

var errBrokenOff = errors.New("the call for which the connection was made has been broken off")

type trackedConn struct {
	net.Conn
	set *connSet
}

func (c *trackedConn) Close() error {
	c.set.mu.Lock()
	delete(c.set.open, c)
	c.set.mu.Unlock()
	if err := c.Conn.Close(); !errors.Is(err, net.ErrClosed) { // by breakOff
		return err
	}
	return nil
}

func (s *connSet) dialer(tlsConfig *tls.Config, timeout time.Duration) func(context.Context, string, string) (net.Conn, error) {
	plain := &net.Dialer{Timeout: timeout, KeepAlive: 15 * time.Second}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		var conn net.Conn
		var err error
		if tlsConfig == nil {
			conn, err = plain.DialContext(ctx, network, addr)
		} else {
			conn, err = (&tls.Dialer{NetDialer: plain, Config: tlsConfig}).DialContext(ctx, network, addr)
		}
		if err != nil {
			return nil, err
		}
		tracked := &trackedConn{Conn: conn, set: s}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.broken {
			return nil, errors.Join(errBrokenOff, conn.Close())
		}
		if s.open == nil {
			s.open = make(map[*trackedConn]struct{})
		}
		s.open[tracked] = struct{}{}
		return tracked, nil
	}
}

// breakOff returns a context that outlives ctx by grace. With it end all
// connections, those that are being dialled too, unless stop was called before.
func (s *connSet) breakOff(ctx context.Context, grace time.Duration) (lasting context.Context, stop func()) {
	lasting, end := context.WithCancel(context.WithoutCancel(ctx))
	cancel := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-lasting.Done():
			return
		case <-timer.C:
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if lasting.Err() != nil {
			return // stopped in the meantime: the connections are the next call's
		}
		end()
		s.broken = true
		for c := range s.open {
			_ = c.Conn.Close() // go-redis closes it again when it sees the error
		}
	})
	return lasting, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		end()
		s.broken = false
	}
}
