package webhookrelay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var _ relay.Pinger = (*source)(nil)

// source turns requests into messages. A request waits until each of its events
// has been acknowledged.
type source struct {
	cfg      sourceConfig
	pipeline string
	scopeIDs bool  // see relay.Env
	maxEvent int64 // bytes of the body of an event; 0 is no bound
	shared   *listeners
	verify   verifier

	stop    chan struct{} // closed by Close
	arrived chan struct{} // holds a token when the queue may have grown

	unverified unverified // bodies being read; max_pending bounds them, too

	mu       sync.Mutex
	closed   bool
	queue    []*item          // not yet received
	inFlight map[string]*item // not yet acknowledged, by id
	reserved int64            // bytes of verified bodies and of events in flight
}

// eventOverhead is about the memory of an event beside its body: the message, its item
// and its channel. Small events take most of their memory here.
const eventOverhead = 1 << 10

// item is one event on its way. More than one request may wait for it, when a
// sender repeats itself.
type item struct {
	message relay.Message
	size    int64
	done    chan struct{} // closed when it is acknowledged
}

func newSource(ctx context.Context, env relay.Env, cfg sourceConfig, shared *listeners) (*source, error) {
	s := &source{
		cfg: cfg, pipeline: env.Pipeline, scopeIDs: env.ScopeIDs, maxEvent: env.MaxMessage, shared: shared, verify: newVerifier(&cfg),
		stop: make(chan struct{}), arrived: make(chan struct{}, 1), inFlight: make(map[string]*item),
		unverified: unverified{max: int64(cfg.MaxPending), byRemote: make(map[string]int64)},
	}
	if err := shared.add(ctx, s, env); err != nil {
		return nil, err
	}
	if cfg.Bind == defaultBind {
		env.Logger.Info("webhook listens on loopback only", "bind", cfg.Bind, "cure", "set webhook_bind to 0.0.0.0:8080 for other machines")
	}
	if cfg.open() {
		env.Logger.Warn("webhook has no authentication; set auth", "bind", cfg.Bind, "path", cfg.Path)
	}
	return s, nil
}

// Receive implements [relay.Source]: it waits for events.
func (s *source) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, relay.ErrClosed
		}
		if n := min(limit, len(s.queue)); n > 0 {
			batch := make([]relay.Message, n)
			for i, it := range s.queue[:n] {
				batch[i] = it.message
				batch[i].Token = it
			}
			s.queue = s.queue[n:]
			if len(s.queue) == 0 {
				s.queue = nil
			}
			s.mu.Unlock()
			return batch, nil
		}
		s.mu.Unlock()
		select {
		case <-s.arrived:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.stop:
		}
	}
}

// Ack implements [relay.Source]: it answers the requests whose events are all settled.
func (s *source) Ack(_ context.Context, batch []relay.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range batch {
		it, ok := batch[i].Token.(*item)
		if !ok || s.inFlight[it.message.ID] != it {
			continue
		}
		delete(s.inFlight, it.message.ID)
		s.reserved -= it.size
		close(it.done)
	}
	return nil
}

// Close implements [relay.Source]: it answers the waiting requests with 503.
func (s *source) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.queue = nil
	close(s.stop)
	s.mu.Unlock()
	return s.shared.remove(s)
}

// Ping implements [relay.Pinger]: it reports whether the source is open.
func (s *source) Ping(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return relay.ErrClosed
	}
	return nil
}

var (
	errStopping = &refusal{http.StatusServiceUnavailable, "the pipeline is stopping or restarting"}
	errSlow     = &refusal{http.StatusServiceUnavailable, "the inbox did not confirm the event in time; send it again"}
	errFull     = &refusal{http.StatusTooManyRequests, "too many events wait for the inbox"}
	errStalled  = &refusal{http.StatusRequestTimeout, "the body arrived too slowly; send it again"}
	errConflict = &refusal{http.StatusConflict, "an event with this id and another body is in progress"}
)

// reserve counts bytes that are verified or about to be queued.
func (s *source) reserve(size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errStopping
	}
	if s.reserved+size > int64(s.cfg.MaxPending) {
		return errFull
	}
	s.reserved += size
	return nil
}

func (s *source) unreserve(size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved -= size
}

// enqueue queues all messages or none, and returns the items to wait for.
func (s *source) enqueue(messages []relay.Message) ([]*item, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errStopping
	}
	for i := range messages {
		if it := s.inFlight[messages[i].ID]; it != nil && !bytes.Equal(it.message.Body, messages[i].Body) {
			return nil, errConflict
		}
	}
	items := make([]*item, len(messages))
	for i := range messages {
		it := s.inFlight[messages[i].ID]
		if it == nil {
			it = &item{message: messages[i], size: int64(len(messages[i].Body)) + eventOverhead, done: make(chan struct{})}
			s.inFlight[it.message.ID] = it
			s.queue = append(s.queue, it)
			s.reserved += it.size
		}
		items[i] = it
	}
	select {
	case s.arrived <- struct{}{}:
	default:
	}
	return items, nil
}

// wait returns when all items are acknowledged.
func (s *source) wait(ctx context.Context, items []*item) error {
	timeout := time.NewTimer(s.cfg.AckTimeout.D())
	defer timeout.Stop()
	for _, it := range items {
		select {
		case <-it.done:
		case <-s.stop:
			return errStopping
		case <-timeout.C:
			return errSlow
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// refusal is an answer that is not 200, with its cause.
type refusal struct {
	status int
	cause  string
}

func (r *refusal) Error() string { return r.cause }

// serve answers one request; see the package comment's table.
func (s *source) serve(w http.ResponseWriter, r *http.Request) {
	n, err := s.take(w, r)
	if err == nil {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, "{\"accepted\":%d}\n", n)
		return
	}
	no, ok := errors.AsType[*refusal](err)
	if !ok { // the client is gone
		no = &refusal{http.StatusBadRequest, "the request ended early"}
	}
	refuse(w, no.status, no.cause)
}

func refuse(w http.ResponseWriter, status int, cause string) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	switch status {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", "1")
	case http.StatusMethodNotAllowed:
		h.Set("Allow", "POST, PUT")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": cause})
}

// take reads, checks and queues the events of a request. It returns their number when
// they are in the inbox.
func (s *source) take(w http.ResponseWriter, r *http.Request) (int, error) {
	if r.Method != http.MethodPost && r.Method != http.MethodPut {
		return 0, &refusal{http.StatusMethodNotAllowed, "send events with POST"}
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return 0, &refusal{http.StatusUnsupportedMediaType, "bodies with a content encoding are not accepted"}
	}
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if s.cfg.open() && !isJSON(mediaType) {
		return 0, &refusal{http.StatusUnsupportedMediaType, "auth none accepts JSON content types only, because web pages can send others"}
	}
	if err == nil && (mediaType == "application/x-www-form-urlencoded" || mediaType == "multipart/form-data") {
		return 0, &refusal{http.StatusUnsupportedMediaType, "forms are not accepted; send JSON"}
	}
	if !s.verify.before(r.Header) {
		if s.cfg.Auth == authBearer {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		return 0, &refusal{http.StatusUnauthorized, "the token is missing or wrong"}
	}
	body, err := s.read(w, r)
	if err != nil {
		return 0, err
	}
	items, err := s.accept(r, mediaType, body)
	s.unreserve(int64(len(body))) // accept reserves its own
	if err != nil {
		return 0, err
	}
	return len(items), s.wait(r.Context(), items)
}

// read returns a body that is verified and reserved.
func (s *source) read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	limit := int64(s.cfg.MaxBody)
	tooLarge := &refusal{http.StatusRequestEntityTooLarge, "the body is larger than " + strconv.FormatInt(limit, 10) + " bytes"}
	size := limit
	switch {
	case r.ContentLength > limit:
		return nil, tooLarge
	case r.ContentLength >= 0:
		size = r.ContentLength
	}
	parts, err := s.unverified.readBody(w, r.RemoteAddr, http.MaxBytesReader(w, r.Body, limit), size)
	if err != nil {
		if r.ProtoMajor == 1 {
			// net/http may have met our deadline behind the body, and have ended the
			// context of all requests of the connection.
			w.Header().Set("Connection", "close")
		}
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, tooLarge
		}
		return nil, err
	}
	defer freeParts(parts)
	if !s.verify.after(r.Header, parts...) {
		return nil, &refusal{http.StatusUnauthorized, "the signature is missing, wrong or too old"}
	}
	if len(parts) == 1 {
		return parts[0], s.reserve(int64(len(parts[0])))
	}
	length := 0
	for _, p := range parts {
		length += len(p)
	}
	if err := s.reserve(int64(length)); err != nil {
		return nil, err
	}
	return bytes.Join(parts, nil), nil
}

// accept checks the body's form and queues its events.
func (s *source) accept(r *http.Request, mediaType string, body []byte) ([]*item, error) {
	n := s.count(body)
	room := int64(n) * eventOverhead
	if int64(len(body))+room > int64(s.cfg.MaxPending) {
		cause := "max_pending has no room for a batch of " + strconv.Itoa(n) + " events; send fewer at a time"
		return nil, &refusal{http.StatusRequestEntityTooLarge, cause}
	}
	if err := s.reserve(room); err != nil {
		return nil, err
	}
	defer s.unreserve(room) // enqueue reserves its own
	messages, err := s.messages(r.Header, mediaType, body)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, err.Error()}
	}
	for i := range messages {
		if length := int64(len(messages[i].Body)); s.maxEvent > 0 && length > s.maxEvent {
			cause := fmt.Sprintf("an event has %d bytes; at most %d are accepted", length, s.maxEvent)
			return nil, &refusal{http.StatusRequestEntityTooLarge, cause}
		}
	}
	return s.enqueue(messages)
}
