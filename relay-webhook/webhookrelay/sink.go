package webhookrelay

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

var (
	_ relay.Limiter  = (*sink)(nil)
	_ relay.Router   = (*sink)(nil)
	_ relay.Pinger   = (*sink)(nil)
	_ relay.Streamer = (*sink)(nil)
)

// sink sends requests. In mode event it spreads the lanes of a batch over workers;
// in mode batch the first worker sends arrays one after the other.
type sink struct {
	cfg     sinkConfig
	classes classifier
	dialer  *relaynet.Dialer
	http    *http.Transport
	tls     *tls.Config // of Ping; the transport changes its own
	do      func(*http.Request) (*http.Response, error)
	workers []*worker

	// Of one Publish, kept for the next.
	lanes   relay.Lanes
	outcome relay.Outcome
	joined  []byte // the array of mode batch
}

func newSink(ctx context.Context, env relay.Env, cfg sinkConfig) (*sink, error) {
	tlsConfig, err := cfg.TLS.Client(env.Read)
	if err != nil {
		return nil, err
	}
	s := &sink{cfg: cfg, classes: classifier{retry: cfg.RetryOnStatus, perMessage: !cfg.URL.Fixed()}, dialer: newDialer(&cfg, env.Control)}
	s.tls = tlsConfig.Clone()
	s.http = newTransport(&cfg, s.dialer, tlsConfig)
	s.do = s.http.RoundTrip
	if cfg.FollowRedirects {
		s.do = (&http.Client{Transport: s.http, CheckRedirect: s.cfg.checkRedirect}).Do
	}
	for range cfg.Concurrency {
		s.workers = append(s.workers, newWorker(s))
	}
	if err := s.Ping(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Publish implements [relay.Sink]: it sends batch and waits for all answers.
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	if err := s.outcome.Begin(ctx, batch); err != nil {
		return err
	}
	defer s.outcome.Reset(nil)
	if s.cfg.Mode == modeBatch {
		return s.publishArrays(ctx, batch)
	}
	s.lanes.Split(batch)
	defer s.lanes.Reset(0)
	r := run{sink: s, batch: batch}
	var wg sync.WaitGroup
	for _, w := range s.workers[1:min(len(s.workers), s.lanes.Len())] {
		wg.Go(func() { r.work(ctx, w) })
	}
	r.work(ctx, s.workers[0])
	wg.Wait()
	return r.result(ctx)
}

// run is one Publish in mode event.
type run struct {
	sink      *sink
	batch     []relay.Message
	lane      atomic.Int64          // lanes taken
	failures  atomic.Int64          // lanes that a transient failure has ended
	confirmed atomic.Bool           // at least one message
	cause     atomic.Pointer[error] // of the run's end, nil while it goes on
}

// work takes lane after lane until there are none or the endpoint fails.
func (r *run) work(ctx context.Context, w *worker) {
	w.limit = newLimit(ctx, r.sink.cfg.ConfirmTimeout.D())
	defer w.limit.close()
	for r.cause.Load() == nil {
		lane := int(r.lane.Add(1)) - 1
		if lane >= r.sink.lanes.Len() {
			return
		}
		r.send(ctx, w, lane)
	}
}

// send sends the messages of a lane until one of them fails.
func (r *run) send(ctx context.Context, w *worker, lane int) {
	lanes, outcome := &r.sink.lanes, &r.sink.outcome
	for i := lanes.First(lane); i >= 0 && r.cause.Load() == nil; i = lanes.Next(i) {
		err := w.event(ctx, &r.batch[i])
		if err == nil {
			outcome.Confirm(i)
			r.confirmed.Store(true)
			continue
		}

		outcome.Fail(i, err)
		for j := lanes.Next(i); j >= 0; j = lanes.Next(j) {
			outcome.Held(j)
		}
		// A failing endpoint fails the next message too, and each may take the whole
		// timeout.
		if spreads(err) || (!relay.IsPermanent(err) && r.failures.Add(1) >= 2*int64(len(r.sink.workers))) {
			r.cause.CompareAndSwap(nil, &err)
		}
		return
	}
}

func (r *run) result(ctx context.Context) error {
	cause := r.cause.Load()
	switch {
	case cause == nil:
		return r.sink.outcome.Err()
	case r.confirmed.Load():
		r.sink.outcome.FailRest(fmt.Errorf("not sent, because the endpoint fails: %w", *cause))
		return r.sink.outcome.Err()
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return *cause
}

// target returns the URL for m.
func (s *sink) target(m *relay.Message) (*url.URL, error) {
	if s.cfg.fixed != nil {
		return s.cfg.fixed, nil
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
	// Some decode %2F and backslashes first.
	if p := strings.ReplaceAll(u.Path, `\`, "/") + "/"; strings.Contains(p, "/../") || strings.Contains(p, "/./") {
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

// origin is the part of the URL that errors quote. Path, query and user may hold a
// secret, and errors are logged, stored and shown.
func (s *sink) origin() string { return s.cfg.base.Scheme + "://" + s.cfg.base.Host }

// Ping implements [relay.Pinger]: it connects to the endpoint and sends nothing.
func (s *sink) Ping(ctx context.Context) error {
	u := s.cfg.base
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	conn, err := s.dialer.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return fmt.Errorf("reach webhook %s: %w", u.Host, err)
	}
	defer conn.Close()
	if u.Scheme != "https" {
		return nil
	}

	// Without a handshake an endpoint passes whose certificate every request refuses.
	config, asked := s.tls.Clone(), false
	config.ServerName = cmp.Or(config.ServerName, u.Hostname())
	config.GetClientCertificate = func(from *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = true
		for i := range config.Certificates {
			if c := &config.Certificates[i]; from.SupportsCertificate(c) == nil {
				return c, nil
			}
		}
		return new(tls.Certificate), nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ConfirmTimeout.D())
	defer cancel()
	began := time.Now()
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return classifyTLS(fmt.Errorf("reach webhook %s: %w", u.Host, err))
	}
	if asked {
		// With TLS 1.3 the endpoint refuses our certificate after our handshake. The next
		// request might find the connection closed, and not the cause.
		_ = secure.SetReadDeadline(time.Now().Add(refusalTime + 2*time.Since(began)))
		if _, err := secure.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return classifyTLS(fmt.Errorf("reach webhook %s: after the TLS handshake: %w", u.Host, err))
		}
	}
	return nil
}

// refusalTime is how long, beside the network, an endpoint may take to refuse a client's
// certificate.
const refusalTime = 250 * time.Millisecond

// Limits implements [relay.Limiter]: a few seconds of work for an ordinary endpoint. Twice as
// many messages took a twentieth more CPU, because each collection of garbage looks through
// them.
func (s *sink) Limits() (messages, bytes int) {
	if s.cfg.Mode == modeBatch {
		return 0, 0
	}
	return 32 * s.cfg.Concurrency, 0
}

// Close implements [relay.Sink]: it closes the connections.
func (s *sink) Close() error {
	s.outcome.Close()
	s.http.CloseIdleConnections()
	s.dialer.Close()
	return nil
}

const (
	maxDrain   = 64 << 10 // bytes of an answer that are read so that its connection can be used again
	maxResults = 4 << 20  // bytes of the answer to a batch
)

// worker sends one request at a time and keeps the buffers for the next one.
type worker struct {
	sink   *sink
	limit  *limit // of the running Publish
	signer signer // empty without signing_secret
	fields []relay.Header
	text   []byte // a rendered template
}

func newWorker(s *sink) *worker { return &worker{sink: s, signer: newSigner(s.cfg.secrets)} }

// post sends a request and returns up to limit bytes of a successful answer.
func (w *worker) post(ctx context.Context, u *url.URL, h *head, body content, limit int) ([]byte, error) {
	answer, err := w.exchange(ctx, u, h, body, limit)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", w.sink.cfg.Method, w.sink.origin(), err)
	}
	return answer, nil
}

func (w *worker) exchange(parent context.Context, u *url.URL, h *head, body content, limit int) ([]byte, error) {
	s := w.sink
	ctx, end := w.limit.begin(&body)
	defer end()
	request, err := newRequest(ctx, s.cfg.Method, u, h, body)
	if err != nil {
		return nil, err
	}
	resp, err := s.do(request)
	if err != nil {
		return nil, s.unanswered(parent, ctx, err)
	}
	defer resp.Body.Close()
	answer, err := readAnswer(resp.Body, limit)
	if err != nil {
		return nil, s.unanswered(parent, ctx, fmt.Errorf("read answer %d: %w", resp.StatusCode, err))
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return answer, nil
	}
	return nil, s.classes.classify(resp.StatusCode, excerpt(hide(answer, u)), retryAfter(resp.Header, time.Now()))
}

// readAnswer returns up to limit bytes of an answer, and reads some more, so that the
// transport can use the connection again.
func readAnswer(body io.Reader, limit int) ([]byte, error) {
	if body == http.NoBody { // the usual one; ReadAll allocates for it, too
		return nil, nil
	}
	answer, err := io.ReadAll(io.LimitReader(body, int64(limit)))
	if err == nil {
		_, _ = io.CopyN(io.Discard, body, maxDrain)
	}
	return answer, err
}

// unanswered returns the error of a request that ended with err and without an answer.
func (s *sink) unanswered(parent, ctx context.Context, err error) error {
	var wrapped *url.Error // of the client, which repeats the URL; that may hold a secret
	wrong, isWrong := errors.AsType[*relaynet.WrongPeerError](peer.Explain(err))
	switch {
	case isWrong:
		return relay.Fatal(wrong)
	case parent.Err() != nil:
		return parent.Err()
	case ctx.Err() != nil:
		return fmt.Errorf("%w (%s)", errTimeout, s.cfg.ConfirmTimeout)
	case errors.As(err, &wrapped):
		return classifyTLS(wrapped.Err)
	}
	return classifyTLS(err)
}
