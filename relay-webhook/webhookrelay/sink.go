package webhookrelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytls"
)

// errNotSent stands for a message until its request has been answered.
var errNotSent = errors.New("not sent")

// sink sends requests. Publish spreads the messages of a batch over workers, a
// lane per key: the messages of one lane are sent one after the other.
type sink struct {
	cfg      sinkConfig
	classes  classifier
	fixed    *url.URL // nil where the URL has variables
	base     *url.URL // without path, where it has
	addr     string   // to dial
	dialer   *net.Dialer
	http     *http.Transport
	do       func(*http.Request) (*http.Response, error)
	workers  []*worker
	closed   bool
	joined   []byte // mode batch: the array
	batchBad map[string]bool

	// The lanes of the batch in hand. heads has the first message of each lane,
	// next the follower of each message or -1.
	heads []int
	next  []int
	tails map[string]int
	errs  []error
}

func newSink(ctx context.Context, _ relay.Env, raw json.RawMessage) (relay.Sink, error) {
	cfg := sinkDefaults()
	if err := relaycfg.Decode(raw, &cfg); err != nil {
		return nil, err
	}
	tlsConfig, err := relaytls.Client(cfg.TLSCA, cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, err
	}
	s := &sink{
		cfg:      cfg,
		classes:  classifier{retry: cfg.RetryOnStatus, perMessage: !cfg.URL.Fixed()},
		dialer:   newDialer(&cfg),
		tails:    make(map[string]int),
		batchBad: make(map[string]bool),
	}
	if cfg.URL.Fixed() {
		if s.fixed, err = url.Parse(cfg.URL.String()); err != nil {
			return nil, relaycfg.Errorf("url", "is not a URL")
		}
	}
	if s.base, s.addr, err = s.endpoint(); err != nil {
		return nil, err
	}
	s.http = newTransport(&cfg, s.dialer, tlsConfig)
	s.do = s.http.RoundTrip
	if cfg.FollowRedirects {
		s.do = (&http.Client{Transport: s.http, CheckRedirect: checkRedirect}).Do
	}
	for range cfg.Concurrency {
		s.workers = append(s.workers, newWorker(s))
	}
	if err := s.Ping(ctx); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// Publish sends batch and waits for all answers.
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	if s.closed {
		return errors.New("publish to webhook: sink is closed")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.cfg.Mode == modeBatch {
		return s.publishArrays(ctx, batch)
	}
	s.plan(batch)
	r := run{sink: s, batch: batch}
	n := min(len(s.workers), len(s.heads))
	var wg sync.WaitGroup
	for _, w := range s.workers[1:n] {
		wg.Go(func() { r.work(ctx, w) })
	}
	r.work(ctx, s.workers[0])
	wg.Wait()
	return r.result(ctx)
}

// plan links the messages of each key.
func (s *sink) plan(batch []relay.Message) {
	s.heads, s.next, s.errs = s.heads[:0], s.next[:0], s.errs[:0]
	clear(s.tails)
	for i := range batch {
		s.next = append(s.next, -1)
		s.errs = append(s.errs, errNotSent)
		if key := batch[i].Key; key != "" {
			tail, ok := s.tails[key]
			s.tails[key] = i
			if ok {
				s.next[tail] = i
				continue
			}
		}
		s.heads = append(s.heads, i)
	}
}

// run is one Publish in mode event.
type run struct {
	sink     *sink
	batch    []relay.Message
	lane     atomic.Int64 // lanes taken
	failures atomic.Int64 // lanes that a transient failure has ended
	stopped  atomic.Bool
	once     sync.Once
	cause    error
}

// work takes lane after lane until there are none or the endpoint fails.
func (r *run) work(ctx context.Context, w *worker) {
	s := r.sink
	for !r.stopped.Load() {
		lane := int(r.lane.Add(1)) - 1
		if lane >= len(s.heads) {
			return
		}
		for i := s.heads[lane]; i >= 0 && !r.stopped.Load(); i = s.next[i] {
			err := w.event(ctx, &r.batch[i])
			s.errs[i] = err
			if err == nil {
				continue
			}
			for j := s.next[i]; j >= 0; j = s.next[j] {
				s.errs[j] = relay.ErrHeldBack
			}
			// What ails the endpoint ails the next message too, and each may wait
			// out the timeout.
			if spreads(err) || (!relay.IsPermanent(err) && r.failures.Add(1) >= 2*int64(len(s.workers))) {
				r.stop(err)
			}
			break
		}
	}
}

func (r *run) stop(cause error) {
	r.once.Do(func() { r.cause = cause })
	r.stopped.Store(true)
}

func (r *run) result(ctx context.Context) error {
	var failed relay.BatchError
	var unsent error
	for i, err := range r.sink.errs {
		if err == nil {
			continue
		}
		if err == errNotSent { //nolint:errorlint // the sentinel itself
			if unsent == nil {
				unsent = fmt.Errorf("not sent, because the endpoint fails: %w", r.cause)
			}
			err = unsent
		}
		failed.Fail(i, err)
	}
	if len(failed.Failed) == len(r.batch) && r.cause != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return r.cause
	}
	return failed.Err()
}

// target returns the URL for m.
func (s *sink) target(m *relay.Message) (*url.URL, error) {
	if s.fixed != nil {
		return s.fixed, nil
	}
	text, err := s.cfg.URL.AppendEscaped(nil, m, escape)
	if err != nil {
		return nil, fmt.Errorf("webhook_url: %w", err)
	}
	u, err := url.Parse(string(text))
	if err != nil {
		return nil, relay.Permanent(fmt.Errorf("render webhook_url for %s: not a URL", m.ID))
	}
	// Escaping leaves dots unchanged, and servers and proxies resolve them.
	if p := u.EscapedPath() + "/"; strings.Contains(p, "/../") || strings.Contains(p, "/./") {
		return nil, relay.Permanent(fmt.Errorf("render webhook_url for %s: a field of the row makes a path segment of dots", m.ID))
	}
	return u, nil
}

// Destination implements [relay.Router]: the URL for m, without a password.
func (s *sink) Destination(m *relay.Message) (string, error) {
	u, err := s.target(m)
	if err != nil {
		return "", err
	}
	return s.cfg.Method + " " + u.Redacted(), nil
}

// endpoint returns the URL as far as it is known, and its address.
func (s *sink) endpoint() (u *url.URL, addr string, err error) {
	if u = s.fixed; u == nil {
		scheme, rest, _ := strings.Cut(s.cfg.URL.String(), "://")
		if end := strings.IndexAny(rest, "/?#"); end >= 0 {
			rest = rest[:end]
		}
		if u, err = url.Parse(scheme + "://" + rest); err != nil {
			return nil, "", relaycfg.Errorf("url", "has no valid host")
		}
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u, net.JoinHostPort(u.Hostname(), port), nil
}

// origin is the part of the URL that errors quote. Path, query and user may hold a
// secret, and errors are logged, stored and shown.
func (s *sink) origin() string { return s.base.Scheme + "://" + s.base.Host }

// Ping implements [relay.Pinger]: it connects to the endpoint and sends nothing.
func (s *sink) Ping(ctx context.Context) error {
	conn, err := s.dialer.DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return fmt.Errorf("reach webhook %s: %w", s.base.Host, err)
	}
	return conn.Close()
}

// Limits implements [relay.Limiter]: a few seconds of work for an ordinary endpoint.
func (s *sink) Limits() (messages, bytes int) {
	if s.cfg.Mode == modeBatch {
		return 0, 0
	}
	return 64 * s.cfg.Concurrency, 0
}

// Close implements [relay.Sink]: it closes the idle connections.
func (s *sink) Close() error {
	s.closed = true
	s.http.CloseIdleConnections()
	return nil
}
