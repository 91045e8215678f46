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
	body, reserved, err := s.read(w, r)
	if err != nil {
		return 0, err
	}
	items, err := s.accept(r, mediaType, body)
	s.unreserve(reserved) // accept has reserved what it took
	if err != nil {
		return 0, err
	}
	return len(items), s.wait(r.Context(), items)
}

// read returns the body, having reserved what it may take.
func (s *source) read(w http.ResponseWriter, r *http.Request) (body []byte, reserved int64, err error) {
	limit := int64(s.cfg.MaxBody)
	tooLarge := &refusal{http.StatusRequestEntityTooLarge, "the body is larger than " + strconv.FormatInt(limit, 10) + " bytes"}
	reserved = limit
	if r.ContentLength > limit {
		return nil, 0, tooLarge
	}
	if r.ContentLength >= 0 {
		reserved = r.ContentLength
		body = make([]byte, 0, r.ContentLength+1) // one more, so that the end is seen without growing
	}
	if err := s.reserve(reserved); err != nil {
		return nil, 0, err
	}
	body, err = readAll(http.MaxBytesReader(w, r.Body, limit), body)
	if err != nil {
		s.unreserve(reserved)
		var maxErr *http.MaxBytesError
		if errors.As(err, &maxErr) {
			return nil, 0, tooLarge
		}
		return nil, 0, err
	}
	return body, reserved, nil
}

func readAll(from io.Reader, into []byte) ([]byte, error) {
	for {
		if len(into) == cap(into) {
			into = append(into, 0)[:len(into)]
		}
		n, err := from.Read(into[len(into):cap(into)])
		into = into[:len(into)+n]
		if errors.Is(err, io.EOF) {
			return into, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// accept checks the body's signature and form and queues its events.
func (s *source) accept(r *http.Request, mediaType string, body []byte) ([]*item, error) {
	if !s.verify.after(r.Header, body) {
		return nil, &refusal{http.StatusUnauthorized, "the signature is missing, wrong or too old"}
	}
	messages, err := s.messages(r.Header, mediaType, body)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, err.Error()}
	}
	return s.enqueue(messages)
}

var _ relay.Source = (*source)(nil)
