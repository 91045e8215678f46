package relay

import (
	"strconv"
	"strings"
	"time"
	"unsafe"
)

// Operations a message can stand for.
const (
	OpInsert = "insert"
	OpUpdate = "update"
	OpDelete = "delete"
	OpEvent  = "event" // a message that came from a broker
)

// Message is one row change, or one broker message, on its way.
//
// A forward message starts with Row, and gets its Body from the engine's encoder
// before it is published. A reverse message starts with Body, and gets its Row
// from the engine's decoder.
type Message struct {
	// ID identifies the message across redeliveries and restarts. It is the key
	// by which receivers drop duplicates. Never empty, never random.
	ID string
	// Subject is where the message is addressed: the rendered subject template
	// (forward) or the event type (reverse).
	Subject string
	// Key groups messages whose order must be kept. Empty means no order is asked.
	Key string
	// Op is one of the Op constants.
	Op string
	// Row is the event itself: one JSON value.
	Row []byte
	// Before is the row before an update, nil where it is not known.
	Before []byte
	// Body is what travels on the wire.
	Body []byte
	// ContentType is the media type of Body.
	ContentType string
	// Headers are the user's own headers and trace context. The standard headers
	// are not among them; see [Message.WireHeaders].
	Headers []Header
	// Time is when the event was recorded at its origin.
	Time time.Time

	// StreamTable is the outbox's stream table, without schema and without the
	// "outbox_" prefix. Forward only, as are the next three.
	StreamTable string
	OutboxID    int64
	RefreshID   string // a UUID, empty where the outbox has none
	FullRefresh bool   // the row is part of a snapshot: an upsert, not a change

	// Origin is where a reverse message came from, for example
	// "kafka:orders". It becomes the inbox's source column.
	Origin string
	// Err says that the source received the message but cannot make sense of it.
	// The engine dead-letters it with Body as its bytes.
	Err error
	// Token is the source's own; the engine gives it back with Ack.
	Token any
}

// Header is one name and value. Names compare without regard to case.
type Header struct{ Name, Value string }

// Names of the standard headers, as they are written by backends whose headers
// keep their case. Backends with lower-case headers use strings.ToLower.
const (
	HeaderDedupKey    = "Pgtrickle-Dedup-Key"
	HeaderOp          = "Pgtrickle-Op"
	HeaderOutboxID    = "Pgtrickle-Outbox-Id"
	HeaderFullRefresh = "Pgtrickle-Full-Refresh"
	HeaderKey         = "Pgtrickle-Key"
	HeaderSubject     = "Pgtrickle-Subject"
	HeaderReplay      = "Pgtrickle-Replay"
	HeaderContentType = "Content-Type"
	HeaderTraceparent = "traceparent"
)

// WireHeaders appends to dst the headers that every backend with headers writes:
// op, outbox id, full refresh (only when true), key (only when there is one) and
// content type, followed by the message's own Headers. It does not append the
// message's ID and Subject: backends carry these in their own way.
func (m *Message) WireHeaders(dst []Header) []Header {
	if m.Op != "" {
		dst = append(dst, Header{HeaderOp, m.Op})
	}
	if m.OutboxID != 0 {
		dst = append(dst, Header{HeaderOutboxID, m.outboxIDText()})
	}
	if m.FullRefresh {
		dst = append(dst, Header{HeaderFullRefresh, "true"})
	}
	if m.Key != "" {
		dst = append(dst, Header{HeaderKey, m.Key})
	}
	if m.ContentType != "" {
		dst = append(dst, Header{HeaderContentType, m.ContentType})
	}
	return append(dst, m.Headers...)
}

// outboxIDText cuts the id out of "<table>:<id>:<row>" where it can, because a
// substring costs no allocation. An application can give any id.
func (m *Message) outboxIDText() string {
	if end := strings.LastIndexByte(m.ID, ':'); end > 0 {
		if start := strings.LastIndexByte(m.ID[:end], ':'); start >= 0 {
			text := m.ID[start+1 : end]
			if id, err := strconv.ParseInt(text, 10, 64); err == nil && id == m.OutboxID {
				return text
			}
		}
	}
	return strconv.FormatInt(m.OutboxID, 10)
}

// AddWireHeader is the inverse of [Message.WireHeaders] for a source: it puts a
// header that arrived into the field where it belongs, and any other into
// Headers with its name in lower case.
func (m *Message) AddWireHeader(name, value string) {
	switch {
	case sameHeader(name, HeaderDedupKey):
		m.ID = value
	case sameHeader(name, HeaderOp):
		m.Op = value
	case sameHeader(name, HeaderOutboxID):
		m.OutboxID, _ = strconv.ParseInt(value, 10, 64)
	case sameHeader(name, HeaderFullRefresh):
		m.FullRefresh = value == "true"
	case sameHeader(name, HeaderKey):
		m.Key = value
	case sameHeader(name, HeaderSubject):
		m.Subject = value
	case sameHeader(name, HeaderContentType):
		m.ContentType = value
	default:
		m.Headers = append(m.Headers, Header{strings.ToLower(name), value})
	}
}

// sameHeader spares a name that is spelled as we spell it the comparison without
// regard to case.
func sameHeader(name, ours string) bool { return name == ours || strings.EqualFold(name, ours) }

// Header returns the value of the first of the message's own headers called
// name, and whether there is one.
func (m *Message) Header(name string) (string, bool) {
	for _, h := range m.Headers {
		if strings.EqualFold(h.Name, name) {
			return h.Value, true
		}
	}
	return "", false
}

// MessageOverhead is about the bytes of memory that a message takes beside what its
// fields point to: the struct in the batch that was received and in the one that is
// published, and the source's own notes about it.
const MessageOverhead = 2*int(unsafe.Sizeof(Message{})) + 48

// Size returns the bytes of memory that the message holds, for limits.
func (m *Message) Size() int {
	n := MessageOverhead + len(m.ID) + len(m.Subject) + len(m.Key) + len(m.Row) + len(m.Before) + len(m.Body)
	for _, h := range m.Headers {
		n += len(h.Name) + len(h.Value)
	}
	return n
}
