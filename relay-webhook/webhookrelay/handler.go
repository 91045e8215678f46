package webhookrelay

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// refusal is an answer with its cause.
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
		w.Header().Set("Content-Length", strconv.Itoa(len(`{"accepted":}`)+len(strconv.Itoa(n))+1))
		_, _ = io.WriteString(w, `{"accepted":`+strconv.Itoa(n)+"}\n")
		return
	}
	var no *refusal
	switch {
	case errors.As(err, &no):
		refuse(w, no.status, no.cause)
	case errors.Is(err, errFull):
		refuse(w, http.StatusTooManyRequests, err.Error())
	case errors.Is(err, errConflict):
		refuse(w, http.StatusConflict, err.Error())
	case errors.Is(err, errClosed), errors.Is(err, errSlow):
		refuse(w, http.StatusServiceUnavailable, err.Error())
	default: // the client has gone
		refuse(w, http.StatusBadRequest, "the request ended early")
	}
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

// take reads, checks and queues the request's events and returns their number
// when they are in the inbox.
func (s *source) take(w http.ResponseWriter, r *http.Request) (int, error) {
	if r.Method != http.MethodPost && r.Method != http.MethodPut {
		return 0, &refusal{http.StatusMethodNotAllowed, "send events with POST"}
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return 0, &refusal{http.StatusUnsupportedMediaType, "bodies with a content encoding are not taken"}
	}
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && (mediaType == "application/x-www-form-urlencoded" || mediaType == "multipart/form-data") {
		return 0, &refusal{http.StatusUnsupportedMediaType, "forms are not taken; send JSON"}
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
	s.unreserve(int64(len(body))) // accept has reserved what it took
	if err != nil {
		return 0, err
	}
	return len(items), s.wait(r.Context(), items)
}

// read returns the body, and has reserved its bytes.
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
	body, err := s.readAll(http.MaxBytesReader(w, r.Body, limit), size)
	var maxErr *http.MaxBytesError
	if errors.As(err, &maxErr) {
		return nil, tooLarge
	}
	return body, err
}

// firstRead is how many bytes of a body there is room for before any has come.
const firstRead = 4 << 10

// readAll reads a body of size bytes at the most. Room is reserved for what has
// arrived, and made for twice as much: who announces a body and does not send it,
// which takes no secret, holds nothing that others could need.
func (s *source) readAll(from io.Reader, size int64) (body []byte, err error) {
	defer func() {
		if err != nil {
			s.unreserve(int64(len(body)))
			body = nil
		}
	}()
	most := int(size) + 1 // so that the end is seen without growing
	body = make([]byte, 0, min(most, firstRead))
	for {
		if len(body) == cap(body) {
			body = append(make([]byte, 0, min(most, 2*cap(body))), body...)
		}
		n, err := from.Read(body[len(body):cap(body)])
		if full := s.reserve(int64(n)); full != nil {
			return body, full
		}
		body = body[:len(body)+n]
		switch {
		case errors.Is(err, io.EOF):
			return body, nil
		case err != nil:
			return body, err
		}
	}
}

// accept checks the body's signature and form and queues its events.
func (s *source) accept(r *http.Request, mediaType string, body []byte) ([]*item, error) {
	if !s.verify.after(r.Header, body) {
		return nil, &refusal{http.StatusUnauthorized, "the signature is missing, wrong or too old"}
	}
	n := s.count(body)
	room := int64(n) * eventOverhead
	if int64(len(body))+room > int64(s.cfg.MaxPending) {
		return nil, &refusal{http.StatusRequestEntityTooLarge, "max_pending has no room for a batch of " + strconv.Itoa(n) + " events; send fewer at a time"}
	}
	if err := s.reserve(room); err != nil {
		return nil, err
	}
	defer s.unreserve(room) // enqueue reserves for what it takes
	messages, err := s.messages(r.Header, mediaType, body)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, err.Error()}
	}
	return s.enqueue(messages)
}

var _ relay.Source = (*source)(nil)
