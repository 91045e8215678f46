package redisrelay

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// clientLog passes on what go-redis logs, at level debug: its errors are returned, too.
type clientLog struct{}

func init() { redis.SetLogger(clientLog{}) } //nolint:gochecknoinits // go-redis has one logger for the process

// Printf implements go-redis's interface.
func (clientLog) Printf(ctx context.Context, format string, v ...any) {
	slog.DebugContext(ctx, "Redis client logs", "text", fmt.Sprintf(format, v...)) //nolint:sloglint // no pipeline's logger is known here
}

// parseURL returns the options of a single server, a cluster or a sentinel:
// [redis.Options], [redis.ClusterOptions] or [redis.FailoverOptions]. It adds two
// things to go-redis's URLs: schemes for cluster and sentinel, and several hosts in
// one URL. Its errors never quote the URL, which may hold a password.
func parseURL(raw string) (any, error) {
	full, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return nil, relaycfg.Errorf("url", "has no scheme; wants redis://HOST:6379")
	}
	scheme, kind, plus := strings.Cut(full, "+")
	if !slices.Contains([]string{"redis", "rediss", "unix"}, scheme) || plus && kind != "cluster" && kind != "sentinel" {
		return nil, relaycfg.Errorf("url", "has the unknown scheme %q; wants redis, rediss, unix, redis+cluster or redis+sentinel", full)
	}

	// go-redis reads one host from the URL and the others from its parameter addr.
	rest, query, _ := strings.Cut(rest, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, relaycfg.Errorf("url", "has a malformed query")
	}
	authority, path, _ := strings.Cut(rest, "/")
	at := strings.LastIndexByte(authority, '@') + 1
	hosts := strings.Split(authority[at:], ",")
	for _, host := range hosts[1:] {
		values.Add("addr", host)
	}
	switch {
	case kind == "sentinel" || kind == "" && values.Has("master_name"):
		kind = "sentinel"
		// redis+sentinel://HOST:26379/MASTER/DB is the form that other clients use.
		if master, db, _ := strings.Cut(strings.Trim(path, "/"), "/"); master != "" && !values.Has("master_name") {
			values.Set("master_name", master)
			path = db
		}
		if !values.Has("master_name") {
			return nil, relaycfg.Errorf("url", "names no master; wants redis+sentinel://HOST:26379/MASTER")
		}
	case values.Has("addr"):
		kind = "cluster"
	}
	return parseOptions(kind, scheme+"://"+authority[:at]+hosts[0]+"/"+path+"?"+values.Encode())
}

// parseOptions runs go-redis's own parser.
func parseOptions(kind, text string) (opts any, err error) {
	switch kind {
	case "cluster":
		opts, err = redis.ParseClusterURL(text)
	case "sentinel":
		opts, err = redis.ParseFailoverURL(text)
	default:
		opts, err = redis.ParseURL(text)
	}
	if urlErr, ok := errors.AsType[*url.Error](err); ok {
		err = urlErr.Err
	}
	if err != nil {
		problem := strings.ReplaceAll(strings.TrimPrefix(err.Error(), "redis: "), text, "[redacted]")
		return nil, relaycfg.Errorf("url", "is malformed: %s", problem)
	}
	return opts, nil
}

// shared points to the options that the three kinds of clients have in common.
type shared struct {
	user, password               *string
	dial, read, write            *time.Duration
	retries, redials, pool, wbuf *int
	tls                          **tls.Config
	dialer                       *func(ctx context.Context, network, addr string) (net.Conn, error)
}

// writeBuffer holds a fifth of a usual transaction. With go-redis's 32 KiB a quarter
// more of the time is spent in the kernel.
const writeBuffer = 128 << 10

// newClients returns a function that makes clients. They send nothing twice:
// go-redis's retries are off, because a transaction whose reply was lost may have been
// executed. All connections are made by d.
func newClients(env relay.Env, cfg *connConfig, d *relaynet.Dialer, pool int) (open func() redis.UniversalClient, err error) {
	opts, err := parseURL(cfg.URL.Reveal())
	if err != nil {
		return nil, err
	}
	quiet := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	var set shared
	switch o := opts.(type) {
	case *redis.ClusterOptions:
		set = shared{
			&o.Username, &o.Password, &o.DialTimeout, &o.ReadTimeout, &o.WriteTimeout,
			&o.MaxRetries, &o.DialerRetries, &o.PoolSize, &o.WriteBufferSize, &o.TLSConfig, &o.Dialer,
		}
		o.MaxRedirects = 3 // a redirected transaction was refused as a whole
		o.MaintNotificationsConfig = quiet
		open = func() redis.UniversalClient { return redis.NewClusterClient(o) }
	case *redis.FailoverOptions:
		set = shared{
			&o.Username, &o.Password, &o.DialTimeout, &o.ReadTimeout, &o.WriteTimeout,
			&o.MaxRetries, &o.DialerRetries, &o.PoolSize, &o.WriteBufferSize, &o.TLSConfig, &o.Dialer,
		}
		if o.Username == "" && o.Password == "" { // go-redis gives the URL's user to the sentinels alone
			o.Username, o.Password = o.SentinelUsername, o.SentinelPassword
		}
		open = func() redis.UniversalClient { return redis.NewFailoverClient(o) }
	case *redis.Options:
		set = shared{
			&o.Username, &o.Password, &o.DialTimeout, &o.ReadTimeout, &o.WriteTimeout,
			&o.MaxRetries, &o.DialerRetries, &o.PoolSize, &o.WriteBufferSize, &o.TLSConfig, &o.Dialer,
		}
		o.MaintNotificationsConfig = quiet
		open = func() redis.UniversalClient { return redis.NewClient(o) }
	}

	if d.TLS, err = cfg.tlsConfig(*set.tls, env.Read); err != nil {
		return nil, relay.Fatal(err)
	}
	d.Timeout, d.Control = cfg.ConfirmTimeout.D(), env.Control
	d.Wrap = func(conn net.Conn) net.Conn { return newGuard(conn, env.MaxAnswer) }
	*set.user, *set.password = cmp.Or(cfg.Username, *set.user), cmp.Or(cfg.Password.Reveal(), *set.password)
	*set.dial, *set.read, *set.write = d.Timeout, d.Timeout, d.Timeout
	*set.retries, *set.redials, *set.pool, *set.wbuf = -1, 1, pool, writeBuffer
	*set.dialer = d.DialContext
	return open, nil
}

// tlsConfig returns nil where neither the URL nor a key asks for TLS.
func (c *connConfig) tlsConfig(fromURL *tls.Config, read relaynet.Reader) (*tls.Config, error) {
	switch {
	case fromURL == nil:
		return c.Client(read)
	case fromURL.InsecureSkipVerify:
		return nil, relaycfg.Errorf("url", "skip_verify lets any server read the password; set redis_tls_ca instead")
	}
	return c.TLS.Client(read)
}

func ping(ctx context.Context, client redis.UniversalClient) error {
	if err := client.Ping(ctx).Err(); err != nil {
		return classify(fmt.Errorf("connect to Redis: %w", err))
	}
	return nil
}
