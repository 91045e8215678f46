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
	maxDrain    = 64 << 10 // bytes of an answer that are read so that its connection can be used again
	maxResults  = 4 << 20  // bytes of the answer to a batch
	maxTogether = 3 << 10  // bytes of a body that go in one packet with its header; the transport's buffer has 4 KiB
	usualFields = 14       // of a header; more make its map twice as large
)

// worker sends one request at a time. It reuses what does not go to the
// transport: that may still look at a request when its answer is there, for an
// endpoint can answer what it has not read.
type worker struct {
	sink   *sink
	signer *signer
	header http.Header
	values []string // what the header's one-element slices point into
	host   string
	wire   []relay.Header
	text   []byte // scratch for templates
	answer []byte // scratch for answers
	bodies sync.WaitGroup

	requests context.Context // until release
	cancel   context.CancelCauseFunc
	timer    *time.Timer
}

var errTimeout = errors.New("no answer in time")

func newWorker(s *sink) *worker {
	w := &worker{sink: s, answer: make([]byte, 4<<10)}
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
	w.wire = m.WireHeaders(w.wire[:0])
	if m.Subject != "" {
		w.wire = append(w.wire, relay.Header{Name: relay.HeaderSubject, Value: m.Subject})
	}
	for _, h := range w.wire {
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
	w.header = make(http.Header, usualFields)
	w.values = make([]string, 0, usualFields)
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
			return err
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
	s := w.sink
	w.prepare(ctx)
	req := (&http.Request{
		Method: s.cfg.Method, URL: u, Header: w.header, Host: w.host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(len(body)),
	}).WithContext(w.requests)
	if u.User != nil && len(w.header["Authorization"]) == 0 {
		password, _ := u.User.Password()
		req.SetBasicAuth(u.User.Username(), password)
	}
	if len(body) <= maxTogether {
		// Only of a reader of this type the transport knows that its bytes are there.
		// Any other body gets a packet, a system call and a wake-up of its own.
		together := bytes.Clone(body)
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(together)), nil }
	} else {
		req.GetBody = func() (io.ReadCloser, error) { return w.newBody(body), nil }
	}
	req.Body, _ = req.GetBody()
	w.timer.Reset(s.cfg.Timeout.D())
	resp, err := s.do(req)
	if err != nil {
		return nil, w.failed(ctx, u, err)
	}
	answer, err := w.read(resp.Body, limit)
	_ = resp.Body.Close()
	w.bodies.Wait()
	if err != nil {
		return nil, w.failed(ctx, u, fmt.Errorf("read answer %d: %w", resp.StatusCode, err))
	}
	if !w.timer.Stop() {
		w.release() // its context is cancelled
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return answer, nil
	}
	err = s.classes.classify(resp.StatusCode, excerpt(answer), retryAfter(resp.Header, time.Now()))
	return nil, fmt.Errorf("%s %s: %w", s.cfg.Method, u.Redacted(), err)
}

// failed ends a request that has no answer.
func (w *worker) failed(ctx context.Context, u *url.URL, err error) error {
	timedOut := errors.Is(context.Cause(w.requests), errTimeout)
	w.release() // the transport must let go of the body
	w.bodies.Wait()
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case timedOut:
		err = fmt.Errorf("%w (%s)", errTimeout, w.sink.cfg.Timeout)
	}
	var wrapped *url.Error // the client says method and URL itself
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return fmt.Errorf("%s %s: %w", w.sink.cfg.Method, u.Redacted(), err)
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

// release ends the context of the worker's requests.
func (w *worker) release() {
	if w.requests == nil {
		return
	}
	w.timer.Stop()
	w.cancel(nil)
	w.requests, w.cancel, w.timer = nil, nil, nil
}

// read returns up to limit bytes of body and drops a little more, so that the
// connection can be used again.
func (w *worker) read(body io.Reader, limit int) ([]byte, error) {
	if body == http.NoBody {
		return nil, nil
	}
	n := 0
	for n < limit {
		if n == len(w.answer) {
			w.answer = append(w.answer, make([]byte, len(w.answer))...)
		}
		got, err := body.Read(w.answer[n:])
		n += got
		if errors.Is(err, io.EOF) {
			return w.answer[:min(n, limit)], nil
		}
		if err != nil {
			return nil, err
		}
	}
	// Whether the rest comes is of no importance.
	_, _ = io.CopyN(io.Discard, body, maxDrain)
	return w.answer[:limit], nil
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
