package webhookrelay

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var errNoID = errors.New("the event has no id: send it in webhook-id or Idempotency-Key, or as dedup_key of an envelope or id of a CloudEvent in the body")

// messages makes the events of one request.
func (s *source) messages(h http.Header, mediaType string, body []byte) ([]relay.Message, error) {
	isJSON := mediaType == "application/json" || strings.HasSuffix(mediaType, "+json")
	batch := s.isBatch(body)
	if isJSON && !batch && !json.Valid(body) {
		return nil, errors.New("the body is not JSON")
	}
	m := relay.Message{Op: relay.OpEvent, Body: body, Origin: "webhook:" + s.cfg.Path, Subject: strings.TrimPrefix(s.cfg.Path, "/"), Time: time.Now()}
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

// isBatch reports whether the elements of the body are events.
func (s *source) isBatch(body []byte) bool {
	return s.cfg.SplitArrays && bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("[")) && json.Valid(body)
}

// count returns how many events messages makes of a body.
func (s *source) count(body []byte) int {
	if !s.isBatch(body) {
		return 1
	}
	n, depth, quoted := 1, 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[' || c == '{':
			depth++
		case c == ']' || c == '}':
			depth--
		case c == ',' && depth == 1:
			n++
		}
	}
	return n
}

// requestID is the id that the headers give. Where the sender signs an id, no
// other is believed.
func (s *source) requestID(h http.Header, own string) string {
	first := func(names ...string) string {
		for _, n := range names {
			if v := h.Get(n); v != "" {
				return v
			}
		}
		return ""
	}
	switch s.cfg.Auth {
	case authStandard:
		return first(headerWebhookID, "Svix-Id")
	case authStripe:
		return "" // the body's
	case authGitHub:
		return first("X-Github-Delivery")
	}
	if own != "" {
		return own
	}
	if id := first(headerWebhookID, "Svix-Id", headerIdempotencyKey); id != "" {
		return id
	}
	if id := h.Get("Ce-Id"); id != "" { // a CloudEvent in binary mode
		return relay.CloudEventID(h.Get("Ce-Source"), id)
	}
	return ""
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
	} else {
		m.ID = bodyID(m.Body)
	}
	if m.ID == "" && s.cfg.OnMissingID == "hash" {
		sum := sha256.Sum256(m.Body)
		m.ID = "webhook:" + hex.EncodeToString(sum[:])
	}
	if m.ID == "" {
		return errNoID
	}
	return nil
}

// bodyID finds the id in an envelope, a CloudEvent or a Debezium event of ours.
// A stranger's CloudEvent is identified by source and id together.
func bodyID(body []byte) string {
	var envelope struct {
		DedupKey string `json:"dedup_key"`
	}
	if json.Unmarshal(body, &envelope) == nil && envelope.DedupKey != "" {
		return envelope.DedupKey
	}
	var cloud struct {
		SpecVersion string `json:"specversion"`
		ID          string `json:"id"`
		Source      string `json:"source"`
	}
	if json.Unmarshal(body, &cloud) == nil && cloud.SpecVersion != "" && cloud.ID != "" {
		return relay.CloudEventID(cloud.Source, cloud.ID)
	}
	var debezium struct {
		Payload struct {
			Source struct {
				Connector string `json:"connector"`
				ID        string `json:"id"`
			} `json:"source"`
		} `json:"payload"`
	}
	if json.Unmarshal(body, &debezium) == nil && debezium.Payload.Source.Connector == "pgtrickle" {
		return debezium.Payload.Source.ID
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

// private reports whether a header is of this hop only, or a secret, or has a
// place of its own in a message, so that it is not kept.
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
