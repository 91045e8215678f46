package webhookrelay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	userAgent   = "pgtrickle-relay"
	maxDetail   = 256      // bytes of an answer that an error quotes
	minToken    = 8        // bytes; a shorter part of a URL is no secret
	maxDrain    = 64 << 10 // bytes of an answer that are read so that its connection can be used again
	maxResults  = 4 << 20  // bytes of the answer to a batch
	maxTogether = 12 << 10 // bytes of a body that go in one write with its header
	usualFields = 14       // of a header; more make its map twice as large
)

// worker sends one request at a time: over its wire, or by the transport where
// there is TLS, a redirect may have to be followed, or the body is large. It
// reuses what it does not give to the transport: that may still look at a request
// when its answer is there, for an endpoint can answer what it has not read.
type worker struct {
	sink   *sink
	signer *signer
	header http.Header
	values []string // what the header's one-element slices point into
	host   string
	fields []relay.Header
	text   []byte // scratch for templates
	answer []byte // scratch for answers
	bodies sync.WaitGroup

	requests context.Context // until release
	cancel   context.CancelCauseFunc
	timer    *time.Timer

	wire    *wire // nil where it cannot be used
	unwatch func() bool
	plain   http.Request
	body    bytes.Reader
	closer  io.ReadCloser // of body
}

var errTimeout = errors.New("no answer in time")

func newWorker(s *sink) *worker {
	w := &worker{sink: s, answer: make([]byte, 4<<10)}
	if s.base.Scheme == "http" && isASCII(s.base.Host) && !s.cfg.FollowRedirects {
		w.wire = newWire(s.dialer, s.addr)
		w.closer = io.NopCloser(&w.body)
	}
	if len(s.cfg.secrets) > 0 {
		w.signer = newSigner(s.cfg.secrets)
	}
	return w
}

// event sends one message.
func (w *worker) event(ctx context.Context, m *relay.Message) error {
	u, err := w.sink.target(m)
	if err != nil {
		return err
	}
	w.reset()
	w.fields = m.WireHeaders(w.fields[:0])
	if m.Subject != "" {
		w.fields = append(w.fields, relay.Header{Name: relay.HeaderSubject, Value: m.Subject})
	}
	for _, h := range w.fields {
		if err := w.add(h.Name, h.Value); err != nil {
			return fmt.Errorf("message %s: %w", m.ID, err)
		}
	}
	if err := w.addOwn(m); err != nil {
		return fmt.Errorf("message %s: %w", m.ID, err)
	}
	if err := w.identify(m.ID, m.Body); err != nil {
		return err
	}
	_, err = w.post(ctx, u, m.Body, maxDetail)
	return err
}

func (w *worker) reset() {
	if w.header == nil {
		w.header = make(http.Header, usualFields)
		w.values = make([]string, 0, usualFields)
	}
	clear(w.header)
	w.values = w.values[:0]
	w.host = ""
	w.set(headerUserAgent, userAgent)
}

// set stores a value under a canonical name.
func (w *worker) set(name, value string) {
	n := len(w.values)
	w.values = append(w.values, value)
	w.header[name] = w.values[n : n+1 : n+1]
}

// add stores a header of a message. The key, the subject and the like take the
// extended form where they must; a header of the user's is refused.
func (w *worker) add(name, value string) error {
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	switch {
	case !validName(canonical):
		return relay.Fatal(fmt.Errorf("header %q is not a valid name", name))
	case reservedHeader(canonical):
		return relay.Fatal(fmt.Errorf("header %q is written by the relay or by HTTP itself: take it out of headers", name))
	case validValue(value):
	case strings.HasPrefix(canonical, "Pgtrickle-"):
		canonical, value = canonical+extended, encodeExtended(value)
	default:
		return relay.Permanent(fmt.Errorf("header %q: its value has a control character or a space at an end", name))
	}
	if canonical == headerHost {
		w.host = value
		return nil
	}
	w.set(canonical, value)
	return nil
}

// addOwn renders the headers of the configuration.
func (w *worker) addOwn(m *relay.Message) error {
	for name, tmpl := range w.sink.cfg.Headers {
		text, err := tmpl.Append(w.text[:0], m)
		w.text = text
		if err != nil {
			return fmt.Errorf("webhook_headers.%s: %w", name, err)
		}
		if err := w.add(name, string(text)); err != nil {
			return err
		}
	}
	return nil
}

// identify adds the id and, where there are secrets, the signatures.
func (w *worker) identify(id string, body []byte) error {
	if !validValue(id) {
		return relay.Permanent(fmt.Errorf("message id %q cannot be a header's value", id))
	}
	w.set(headerIdempotencyKey, id)
	w.set(headerWebhookID, id)
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	w.set(headerWebhookTimestamp, timestamp)
	if w.signer != nil {
		w.set(headerWebhookSignature, w.signer.sign(id, timestamp, body))
	}
	return nil
}

// post sends the request and returns up to limit bytes of a successful answer,
// valid until the next call.
func (w *worker) post(ctx context.Context, u *url.URL, body []byte, limit int) ([]byte, error) {
	if u.User != nil && len(w.header["Authorization"]) == 0 {
		password, _ := u.User.Password()
		(&http.Request{Header: w.header}).SetBasicAuth(u.User.Username(), password)
	}
	var status int
	var answer []byte
	var delay time.Duration
	var err error
	if w.wire != nil && len(body) <= maxTogether {
		status, delay, answer, err = w.overWire(ctx, u, body, limit)
	} else {
		status, delay, answer, err = w.byTransport(ctx, u, body, limit)
		w.header, w.values = nil, nil
	}
	if err != nil {
		return nil, w.failed(ctx, err)
	}
	if status >= 200 && status < 300 {
		return answer, nil
	}
	err = w.sink.classes.classify(status, excerpt(hide(answer, u)), delay)
	return nil, fmt.Errorf("%s %s: %w", w.sink.cfg.Method, w.sink.origin(), err)
}

func (w *worker) overWire(ctx context.Context, u *url.URL, body []byte, limit int) (status int, delay time.Duration, answer []byte, err error) {
	if w.unwatch == nil {
		w.unwatch = context.AfterFunc(ctx, w.wire.breakOff)
	}
	w.plain = http.Request{
		Method: w.sink.cfg.Method, URL: u, Header: w.header, Host: w.host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(len(body)), Body: w.closer,
	}
	deadline := time.Now().Add(w.sink.cfg.Timeout.D())
	resp, err := w.wire.exchange(ctx, &w.plain, func() { w.body.Reset(body) }, deadline) //nolint:bodyclose // that would read it to its end, which it may not have
	if err != nil {
		return 0, 0, nil, err
	}
	answer, whole, err := w.read(resp.Body, limit)
	if whole && !resp.Close && resp.StatusCode >= 200 {
		w.wire.keep()
	} else {
		w.wire.hangUp()
	}
	if err != nil {
		return 0, 0, nil, fmt.Errorf("read answer %d: %w", resp.StatusCode, err)
	}
	return resp.StatusCode, retryAfter(resp.Header, time.Now()), answer, nil
}

func (w *worker) byTransport(ctx context.Context, u *url.URL, body []byte, limit int) (status int, delay time.Duration, answer []byte, err error) {
	w.prepare(ctx)
	req := (&http.Request{
		Method: w.sink.cfg.Method, URL: u, Header: w.header, Host: w.host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(len(body)),
	}).WithContext(w.requests)
	if len(body) <= maxTogether {
		// Only of a reader of this type the transport knows that its bytes are there.
		// Any other body gets a packet, a system call and a wake-up of its own.
		together := bytes.Clone(body)
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(together)), nil }
	} else {
		req.GetBody = func() (io.ReadCloser, error) { return w.newBody(body), nil }
	}
	req.Body, _ = req.GetBody()
	w.timer.Reset(w.sink.cfg.Timeout.D())
	resp, err := w.sink.do(req)
	if err != nil {
		return 0, 0, nil, err
	}
	answer, _, err = w.read(resp.Body, limit)
	_ = resp.Body.Close()
	w.bodies.Wait()
	if err != nil {
		return 0, 0, nil, fmt.Errorf("read answer %d: %w", resp.StatusCode, err)
	}
	if !w.timer.Stop() {
		w.release() // its context is cancelled
	}
	return resp.StatusCode, retryAfter(resp.Header, time.Now()), answer, nil
}

// failed ends a request that has no answer.
func (w *worker) failed(ctx context.Context, err error) error {
	timedOut := errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) ||
		(w.requests != nil && errors.Is(context.Cause(w.requests), errTimeout))
	w.release() // the transport must let go of the body
	w.bodies.Wait()
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case timedOut:
		err = fmt.Errorf("%w (%s)", errTimeout, w.sink.cfg.Timeout)
	}
	var wrapped *url.Error // the client says method and URL itself, with all that is in it
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return fmt.Errorf("%s %s: %w", w.sink.cfg.Method, w.sink.origin(), err)
}

// prepare makes a context that the timer can cancel, for as many requests as
// come before it does.
func (w *worker) prepare(ctx context.Context) {
	if w.requests != nil && w.requests.Err() == nil {
		return
	}
	w.release()
	requests, cancel := context.WithCancelCause(ctx)
	w.requests, w.cancel = requests, cancel
	w.timer = time.AfterFunc(w.sink.cfg.Timeout.D(), func() { cancel(errTimeout) })
	w.timer.Stop()
}

// release ends the context of the worker's requests, and lets go of the last one.
func (w *worker) release() {
	w.plain = http.Request{}
	w.body.Reset(nil)
	if w.unwatch != nil {
		if !w.unwatch() { // it may be at work yet
			w.wire.hangUp()
			w.wire = newWire(w.sink.dialer, w.sink.addr)
		}
		w.unwatch = nil
	}
	if w.requests == nil {
		return
	}
	w.timer.Stop()
	w.cancel(nil)
	w.requests, w.cancel, w.timer = nil, nil, nil
}

// close ends the worker's connection.
func (w *worker) close() {
	if w.wire != nil {
		w.wire.hangUp()
	}
}

// read returns up to limit bytes of body and drops a little more, so that the
// connection can be used again where that was the whole of it.
func (w *worker) read(body io.Reader, limit int) (answer []byte, whole bool, err error) {
	if body == http.NoBody {
		return nil, true, nil
	}
	n := 0
	for n < limit {
		if n == len(w.answer) {
			w.answer = append(w.answer, make([]byte, len(w.answer))...)
		}
		got, err := body.Read(w.answer[n:])
		n += got
		if errors.Is(err, io.EOF) {
			return w.answer[:min(n, limit)], true, nil
		}
		if err != nil {
			return nil, false, err
		}
	}
	// Whether the rest comes is of no importance.
	_, err = io.CopyN(io.Discard, body, maxDrain)
	return w.answer[:limit], errors.Is(err, io.EOF), nil
}

// hide takes out of an answer what it repeats of the URL, in which a token may be:
// many servers say what it is that they have not found. It returns little more than
// an error quotes: an answer can be long, and is copied once for each part.
func hide(answer []byte, u *url.URL) []byte {
	answer = answer[:min(len(answer), maxDetail+len(u.RequestURI()))]
	parts := bytes.FieldsFunc([]byte(u.RequestURI()), func(r rune) bool { return strings.ContainsRune("/?&=", r) })
	for _, part := range parts {
		if len(part) < minToken {
			continue
		}
		answer = bytes.ReplaceAll(answer, part, []byte("…"))
		for n := len(part) - 1; n >= minToken/2; n-- { // the answer may be cut off within it
			answer = bytes.TrimSuffix(answer, part[:n])
		}
	}
	return answer
}

func excerpt(answer []byte) string {
	text := bytes.ToValidUTF8(answer[:min(len(answer), maxDetail)], []byte(string(utf8.RuneError)))
	return strings.TrimSpace(string(text))
}

// newBody returns a body whose Close says that the transport has let go of b.
func (w *worker) newBody(b []byte) io.ReadCloser {
	w.bodies.Add(1)
	return &requestBody{rest: b, closed: &w.bodies}
}

// requestBody gives its bytes back when it is closed: the transport may read and
// close it after it has returned.
type requestBody struct {
	mu     sync.Mutex
	rest   []byte
	closed *sync.WaitGroup // nil afterwards
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed == nil {
		return 0, http.ErrBodyReadAfterClose
	}
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (b *requestBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		b.closed.Done()
		b.closed, b.rest = nil, nil
	}
	return nil
}
