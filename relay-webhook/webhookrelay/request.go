package webhookrelay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	maxDetail  = 256      // bytes of an answer that an error quotes
	minToken   = 8        // bytes; a shorter part of a URL is not taken for a secret
	maxDrain   = 64 << 10 // bytes of an answer that are read so that its connection can be used again
	maxResults = 4 << 20  // bytes of the answer to a batch
)

var errTimeout = errors.New("no answer in time")

// worker sends one request at a time and keeps the buffers for the next one.
type worker struct {
	sink   *sink
	signer *signer // nil without signing_secret
	fields []relay.Header
	text   []byte // a rendered template
	answer []byte
}

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
	h := newHead()
	w.fields = m.WireHeaders(w.fields[:0])
	if m.Subject != "" {
		w.fields = append(w.fields, relay.Header{Name: relay.HeaderSubject, Value: m.Subject})
	}
	for _, f := range w.fields {
		if err := h.add(f.Name, f.Value); err != nil {
			return fmt.Errorf("message %s: %w", m.ID, err)
		}
	}
	if err := w.addConfigured(h, m); err != nil {
		return fmt.Errorf("message %s: %w", m.ID, err)
	}
	if err := w.identify(h, m.ID, m.Body); err != nil {
		return err
	}
	_, err = w.post(ctx, u, h, m.Body, maxDetail)
	return err
}

// addConfigured renders the headers of the configuration.
func (w *worker) addConfigured(h *head, m *relay.Message) error {
	for name, tmpl := range w.sink.cfg.Headers {
		text, err := tmpl.Append(w.text[:0], m)
		w.text = text
		if err != nil {
			return fmt.Errorf("webhook_headers.%s: %w", name, err)
		}
		if err := h.add(name, string(text)); err != nil {
			return err
		}
	}
	return nil
}

// identify adds the id and, where there are secrets, the signatures.
func (w *worker) identify(h *head, id string, body []byte) error {
	if !validValue(id) {
		return relay.Permanent(fmt.Errorf("message id %q cannot be the value of a header", id))
	}
	h.set(headerIdempotencyKey, id)
	h.set(headerWebhookID, id)
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	h.set(headerWebhookTimestamp, timestamp)
	if w.signer != nil {
		h.set(headerWebhookSignature, w.signer.sign(id, timestamp, body))
	}
	return nil
}

// post sends a request and returns up to limit bytes of a successful answer, valid
// until the next call.
func (w *worker) post(ctx context.Context, u *url.URL, h *head, body []byte, limit int) ([]byte, error) {
	status, delay, answer, err := w.exchange(ctx, u, h, body, limit)
	if err == nil && status >= 200 && status < 300 {
		return answer, nil
	}
	if err == nil {
		err = w.sink.classes.classify(status, excerpt(hide(answer, u)), delay)
	}
	return nil, fmt.Errorf("%s %s: %w", w.sink.cfg.Method, w.sink.origin(), err)
}

func (w *worker) exchange(parent context.Context, u *url.URL, h *head, body []byte, limit int) (status int, delay time.Duration, answer []byte, err error) {
	s := w.sink
	ctx, cancel := context.WithTimeoutCause(parent, s.cfg.ConfirmTimeout.D(), errTimeout)
	defer cancel()
	defer func() {
		var wrapped *url.Error // the client repeats the URL, which may hold a secret
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		switch {
		case err == nil:
		case parent.Err() != nil:
			err = parent.Err()
		case ctx.Err() != nil:
			err = fmt.Errorf("%w (%s)", errTimeout, s.cfg.ConfirmTimeout)
		}
	}()

	resp, err := s.do(newRequest(ctx, s.cfg.Method, u, h, body))
	if err != nil {
		return 0, 0, nil, err
	}
	defer resp.Body.Close()
	if answer, err = w.read(resp.Body, limit); err != nil {
		return 0, 0, nil, fmt.Errorf("read answer %d: %w", resp.StatusCode, err)
	}
	return resp.StatusCode, retryAfter(resp.Header, time.Now()), answer, nil
}

// newRequest returns a request with a copy of body: the transport may read it after
// the request has been answered. The transport knows that the bytes of a
// bytes.Reader are in memory, and sends them in one packet with the header.
func newRequest(ctx context.Context, method string, u *url.URL, h *head, body []byte) *http.Request {
	if u.User != nil && len(h.Header["Authorization"]) == 0 {
		password, _ := u.User.Password()
		(&http.Request{Header: h.Header}).SetBasicAuth(u.User.Username(), password)
	}

	body = bytes.Clone(body)
	getBody := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	first, _ := getBody()
	return (&http.Request{
		Method: method, URL: u, Header: h.Header, Host: h.host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		ContentLength: int64(len(body)), Body: first, GetBody: getBody,
	}).WithContext(ctx)
}

// read returns up to limit bytes of body. It discards a little more, so that the
// transport can use the connection again.
func (w *worker) read(body io.Reader, limit int) ([]byte, error) {
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
	_, _ = io.CopyN(io.Discard, body, maxDrain)
	return w.answer[:limit], nil
}

// hide removes the parts of the URL that an answer repeats, because one of them may
// be a token. It returns little more than an error quotes: an answer can be long,
// and is copied once for each part.
func hide(answer []byte, u *url.URL) []byte {
	answer = answer[:min(len(answer), maxDetail+len(u.RequestURI()))]
	parts := bytes.FieldsFunc([]byte(u.RequestURI()), func(r rune) bool { return strings.ContainsRune("/?&=", r) })
	for _, part := range parts {
		if len(part) < minToken {
			continue
		}
		answer = bytes.ReplaceAll(answer, part, []byte("…"))
		for n := len(part) - 1; n >= minToken/2; n-- { // the answer may end inside the token
			answer = bytes.TrimSuffix(answer, part[:n])
		}
	}
	return answer
}

func excerpt(answer []byte) string {
	text := bytes.ToValidUTF8(answer[:min(len(answer), maxDetail)], []byte(string(utf8.RuneError)))
	return strings.TrimSpace(string(text))
}
