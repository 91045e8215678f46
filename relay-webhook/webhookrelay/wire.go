package webhookrelay

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Names of headers, in canonical form.
const (
	headerIdempotencyKey   = "Idempotency-Key"
	headerWebhookID        = "Webhook-Id"
	headerWebhookTimestamp = "Webhook-Timestamp"
	headerWebhookSignature = "Webhook-Signature"
	headerBatch            = "Pgtrickle-Batch"
	headerHost             = "Host"
	headerUserAgent        = "User-Agent"
)

const (
	userAgent   = "pgtrickle-relay"
	usualFields = 14 // of a header; more make its map twice as large
)

// A header whose value HTTP cannot carry gets a name with an asterisk and a value
// in the form of RFC 8187: UTF-8” and percent-encoding.
const (
	extended       = "*"
	extendedPrefix = "UTF-8''"
)

// head is the header of one request. The transport may read it after the request
// has been answered, so it is never used again.
type head struct {
	http.Header
	host   string
	values []string // the header's one-element slices point into it
}

func newHead() *head {
	h := &head{Header: make(http.Header, usualFields), values: make([]string, 0, usualFields)}
	h.set(headerUserAgent, userAgent)
	return h
}

// set stores a value under a canonical name.
func (h *head) set(name, value string) {
	n := len(h.values)
	h.values = append(h.values, value)
	h.Header[name] = h.values[n : n+1 : n+1]
}

// add stores a header of a message. The relay's own headers take the extended form
// where their value needs it; such a value in a user's header is refused.
func (h *head) add(name, value string) error {
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	switch {
	case !validName(canonical):
		return relay.Fatal(fmt.Errorf("header %q: is not a valid name", name))
	case reservedHeader(canonical):
		return relay.Fatal(fmt.Errorf("header %q: is written by the relay or by HTTP; remove it from headers", name))
	case validValue(value):
	case strings.HasPrefix(canonical, "Pgtrickle-"):
		canonical, value = canonical+extended, encodeExtended(value)
	default:
		return relay.Permanent(fmt.Errorf("header %q: value has a control character or a space at an end", name))
	}

	if canonical == headerHost {
		h.host = value
		return nil
	}
	h.set(canonical, value)
	return nil
}

func reservedHeader(name string) bool {
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case headerIdempotencyKey, headerWebhookID, headerWebhookTimestamp, headerWebhookSignature,
		"Connection", "Content-Length", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect":
		return true
	}
	return false
}

// validName reports whether s is a token of RFC 9110.
func validName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}

// validValue reports whether s arrives unchanged: it has no control character, and
// no space at either end, which receivers drop.
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return strings.Trim(s, " \t") == s
}

func encodeExtended(s string) string { return extendedPrefix + escape(s) }

func decodeExtended(s string) (string, bool) {
	encoded, ok := strings.CutPrefix(s, extendedPrefix)
	if !ok {
		return "", false
	}
	v, err := url.PathUnescape(encoded)
	return v, err == nil
}

// escape makes a value safe in a path and in a query alike.
func escape(value string) string { return strings.ReplaceAll(url.QueryEscape(value), "+", "%20") }

// event sends one message.
func (w *worker) event(ctx context.Context, m *relay.Message) error {
	u, err := w.sink.target(m)
	if err != nil {
		return err
	}
	h := newHead()
	w.fields = m.WireHeaders(w.fields[:0])
	if m.Delivery() != m.ID {
		w.fields = append(w.fields, relay.Header{Name: relay.HeaderDedupKey, Value: m.ID})
	}
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
	body := content{bytes: m.Body, stream: m.Payload.Stream}
	if err := w.identify(ctx, h, m.Delivery(), body); err != nil {
		return err
	}
	_, err = w.post(ctx, u, h, body, maxDetail)
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
func (w *worker) identify(ctx context.Context, h *head, id string, body content) error {
	if !validValue(id) {
		return relay.Permanent(fmt.Errorf("message id %q cannot be the value of a header", id))
	}
	h.set(headerIdempotencyKey, id)
	h.set(headerWebhookID, id)
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	h.set(headerWebhookTimestamp, timestamp)
	if len(w.signer) > 0 {
		signature, err := w.signer.sign(ctx, id, timestamp, body)
		if err != nil {
			return err
		}
		h.set(headerWebhookSignature, signature)
	}
	return nil
}

// newRequest returns a request for body.
func newRequest(ctx context.Context, method string, u *url.URL, h *head, body content) (*http.Request, error) {
	if u.User != nil && len(h.Header["Authorization"]) == 0 {
		password, _ := u.User.Password()
		(&http.Request{Header: h.Header}).SetBasicAuth(u.User.Username(), password)
	}
	r := &http.Request{
		Method: method, URL: u, Header: h.Header, Host: h.host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	err := body.attach(ctx, r)
	return r.WithContext(ctx), err
}

var errNoID = errors.New("the event has no id: send it in webhook-id or Idempotency-Key, or in the body")

// errNoSignedID is for auth hmac, which signs no header.
var errNoSignedID = errors.New("the event has no signed id: send one in the body, or let the receiver set on_missing_id to hash")

// messages makes the events of one request.
func (s *source) messages(h http.Header, mediaType string, body []byte) ([]relay.Message, error) {
	batch := s.isBatch(body)
	if isJSON(mediaType) && !batch && !json.Valid(body) {
		return nil, errors.New("the body is not JSON")
	}
	m := relay.Message{
		Subject: strings.TrimPrefix(s.cfg.Path, "/"), Op: relay.OpEvent, Body: body,
		Time: time.Now(), Origin: "webhook:" + s.cfg.Path,
	}
	for name, values := range h {
		if len(values) > 0 && !private(name) && !strings.EqualFold(name, s.cfg.AuthHeader) && !strings.EqualFold(name, s.cfg.SignatureHeader) {
			addHeader(&m, name, values[0])
		}
	}
	m.ID = s.requestID(h, m.ID)
	if at, err := strconv.ParseInt(h.Get(headerWebhookTimestamp), 10, 64); err == nil && at > 0 && at < 1<<40 {
		m.Time = time.Unix(at, 0)
	}
	if event := h.Get("X-Github-Event"); event != "" && s.cfg.Auth == authGitHub {
		m.Subject = event
	}
	if batch {
		return s.split(&m, mediaType, body)
	}
	if err := s.complete(&m); err != nil {
		return nil, err
	}
	return []relay.Message{m}, nil
}

func isJSON(mediaType string) bool {
	return mediaType == "application/json" || strings.HasSuffix(mediaType, "+json")
}

// isBatch reports whether the elements of the body are events.
func (s *source) isBatch(body []byte) bool {
	return s.cfg.SplitArrays && bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("[")) && json.Valid(body)
}

// count returns how many events messages makes of a body.
func (s *source) count(body []byte) int {
	if !s.isBatch(body) {
		return 1
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	_, _ = dec.Token() // the bracket
	n := 0
	for element := (json.RawMessage)(nil); dec.More() && dec.Decode(&element) == nil; n++ {
		element = element[:0]
	}
	return n
}

// requestID returns the id that the headers give. If the sender is no relay, the id can
// be unique at this path only.
func (s *source) requestID(h http.Header, own string) string {
	id := s.givenID(h, own)
	switch {
	case id == "" && (s.cfg.Auth == authNone || s.cfg.Auth == authBearer) && h.Get("Ce-Id") != "":
		return relay.CloudEventID(h.Get("Ce-Source"), h.Get("Ce-Id")) // a CloudEvent in binary mode
	case id != "" && s.scopeIDs && !slices.ContainsFunc(slices.Collect(maps.Keys(h)), relay.WroteRelay):
		return "webhook:" + s.cfg.Path + ":" + id
	}
	return id
}

// givenID returns the id in the headers, as it is. Where the sender signs an id or the
// body alone, no other id is believed: with it a copied request would be a new event.
func (s *source) givenID(h http.Header, own string) string {
	switch s.cfg.Auth {
	case authStandard:
		id := cmp.Or(h.Get(headerWebhookID), h.Get("Svix-Id"))
		if own != "" && relay.Delivers(id, own) {
			return own // signed with id, which is made of it
		}
		return id
	case authStripe, authHMAC:
		return "" // the body's
	case authGitHub:
		return h.Get("X-GitHub-Delivery")
	}
	return cmp.Or(own, h.Get(headerWebhookID), h.Get("Svix-Id"), h.Get(headerIdempotencyKey))
}

// split takes the elements of an array for events that share the request's
// headers.
func (s *source) split(request *relay.Message, mediaType string, body []byte) ([]relay.Message, error) {
	var parts []json.RawMessage
	if err := json.Unmarshal(body, &parts); err != nil {
		return nil, errors.New("the body is not JSON")
	}
	if len(parts) == 0 {
		return nil, errors.New("the batch is empty")
	}
	messages := make([]relay.Message, len(parts))
	seen := make(map[string]bool, len(parts))
	for i, part := range parts {
		m := *request
		m.Body, m.ID = part, ""
		if mediaType == "application/cloudevents-batch+json" {
			m.ContentType = "application/cloudevents+json"
		}
		if err := s.complete(&m); errors.Is(err, errNoID) && request.ID != "" {
			m.ID = request.ID + ":" + strconv.Itoa(i)
		} else if err != nil {
			return nil, fmt.Errorf("event %d of the batch: %w", i, err)
		}
		if seen[m.ID] {
			return nil, fmt.Errorf("event %d of the batch: another one has the same id %q", i, m.ID)
		}
		seen[m.ID] = true
		messages[i] = m
	}
	return messages, nil
}

// complete looks for an id in the body where the headers have none.
func (s *source) complete(m *relay.Message) error {
	if m.ID != "" {
		return nil
	}
	if s.cfg.Auth == authStripe {
		var event struct {
			ID   string `json:"id"`
			Type string `json:"type"`
		}
		_ = json.Unmarshal(m.Body, &event) // one that is something else has no id
		m.ID, m.Subject = event.ID, event.Type
		if s.scopeIDs && m.ID != "" {
			m.ID = m.Origin + ":" + m.ID
		}
	} else {
		m.ID = bodyID(m.Body)
	}
	if m.ID == "" && s.cfg.OnMissingID == "hash" {
		m.ID = "webhook:" + relay.Hash(m.Body)
		if s.scopeIDs {
			m.ID = m.Origin + ":" + relay.Hash(m.Body)
		}
	}
	switch {
	case m.ID == "" && s.cfg.Auth == authHMAC:
		return errNoSignedID
	case m.ID == "":
		return errNoID
	}
	return nil
}

// bodyID finds the id in an envelope, a CloudEvent or a Debezium event of the relay. A
// CloudEvent of another producer is identified by source and id together.
func bodyID(body []byte) string {
	var event struct {
		DedupKey    string `json:"dedup_key"`
		SpecVersion string `json:"specversion"`
		ID          string `json:"id"`
		Source      any    `json:"source"`
		Payload     struct {
			Source struct {
				Connector string `json:"connector"`
				ID        string `json:"id"`
			} `json:"source"`
		} `json:"payload"`
	}
	_ = json.Unmarshal(body, &event) // a field of another type stays empty
	source, ok := event.Source.(string)
	switch {
	case event.DedupKey != "":
		return event.DedupKey
	case event.SpecVersion != "" && event.ID != "" && (ok || event.Source == nil):
		return relay.CloudEventID(source, event.ID)
	case event.Payload.Source.Connector == "pgtrickle":
		return event.Payload.Source.ID
	}
	return ""
}

// addHeader undoes the extended form of a value.
func addHeader(m *relay.Message, name, value string) {
	if base, ok := strings.CutSuffix(name, extended); ok && strings.HasPrefix(name, "Pgtrickle-") {
		if decoded, ok := decodeExtended(value); ok {
			name, value = base, decoded
		}
	}
	m.AddWireHeader(name, value)
}

// private reports whether a header is not kept. Such a header belongs to the
// connection, is a secret, or has a field of its own in a message.
func private(name string) bool {
	switch name {
	case "Authorization", "Proxy-Authorization", "Cookie", "Host", "Connection", "Keep-Alive", "Te", "Trailer",
		"Transfer-Encoding", "Upgrade", "Expect", "Content-Length", "Content-Encoding", "Accept", "Accept-Encoding",
		"User-Agent", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip",
		headerWebhookID, headerWebhookTimestamp, headerWebhookSignature, "Svix-Id", "Svix-Timestamp", "Svix-Signature",
		headerIdempotencyKey, headerBatch, "X-Hub-Signature", "X-Hub-Signature-256", "Stripe-Signature":
		return true
	}
	return false
}
