package relay

import (
	"crypto/sha256"
	"encoding/hex"
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
	// OpSnapshotEnd is that of a marker: everything of a snapshot lies before it. Its Row
	// has outbox_id, and messages, the number of those before it.
	OpSnapshotEnd = "snapshot_end"
)

// Message is one row change, or one broker message, on its way.
//
// A forward message starts with Row, and gets its Body from the engine's encoder
// before it is published. A reverse message starts with Body, and gets its Row
// from the engine's decoder.
type Message struct {
	// ID identifies the event across redeliveries, restarts and pipelines. An inbox
	// drops duplicates by it. Never empty, the same whenever the row is read.
	ID string
	// DeliveryID identifies the event as this pipeline delivers it, for far ends that
	// drop what they have under an id: [DeliveryID] makes it. Two pipelines give the same
	// event two. Empty means ID; [Message.Delivery] returns what counts.
	DeliveryID string
	// Subject is where the message is addressed: the rendered subject template
	// (forward) or the event type (reverse).
	Subject string
	// Key groups messages whose order must be kept. Empty means no order is asked.
	Key string
	// BeforeKey is the Key that the row had before an update that changed it, else empty.
	BeforeKey string
	// Op is one of the Op constants.
	Op string
	// Row is the event itself: one JSON value.
	Row []byte
	// Payload is what travels in place of Row; zero for Row itself.
	Payload Payload
	// Before is the row before an update, nil where it is not known.
	Before []byte
	// Body is what travels on the wire.
	Body []byte
	// ContentType is the media type of Body.
	ContentType string
	// Headers are the user's own headers, trace context, and [HeaderReplay] in a
	// replay. The other standard headers are not among them: [Message.WireHeaders]
	// makes those of the fields of the message.
	Headers []Header
	// Time is when the event was recorded at its origin.
	Time time.Time

	// The next four are pg_trickle's and set in forward messages only. A sink writes
	// them by WireHeaders and its templates; it needs to know none of them.

	// StreamTable is the stream table, without schema and "outbox_".
	StreamTable string
	// OutboxID is the id of the outbox row that the message comes from.
	OutboxID int64
	// RefreshID is the UUID of the refresh, empty if the outbox has none.
	RefreshID string
	// FullRefresh is set if the row is part of a snapshot: an upsert, not a change.
	FullRefresh bool

	// Origin is where a reverse message came from, for example
	// "kafka:orders". It becomes the inbox's source column.
	Origin string
	// Err is set by a source that cannot read the message that it received. The
	// engine dead-letters the message with Body as its bytes.
	Err error
	// Token is for the source; the engine gives it back with Ack.
	Token any
}

// Header is one name and value. Names compare without regard to case.
type Header struct{ Name, Value string }

// Names of the standard headers, as they are written by backends whose headers
// keep their case. Backends with lower-case headers use strings.ToLower.
const (
	HeaderDedupKey    = "Pgtrickle-Dedup-Key"   // Message.ID
	HeaderPipelineID  = "Pgtrickle-Pipeline-Id" // Env.Identity, on far ends that are read back
	HeaderOp          = "Pgtrickle-Op"
	HeaderOutboxID    = "Pgtrickle-Outbox-Id"
	HeaderFullRefresh = "Pgtrickle-Full-Refresh"
	HeaderKey         = "Pgtrickle-Key"
	HeaderBeforeKey   = "Pgtrickle-Before-Key"
	HeaderSubject     = "Pgtrickle-Subject"
	HeaderReplay      = "Pgtrickle-Replay"
	// HeaderRowID is the __pgt_row_id of a change between two snapshots, and
	// HeaderRowOccurrence counts the rows that have the same one, from 2 on.
	HeaderRowID         = "Pgtrickle-Row-Id"
	HeaderRowOccurrence = "Pgtrickle-Row-Occurrence"
	HeaderContentType   = "Content-Type"
	HeaderTraceparent   = "traceparent"
)

// WireHeaders appends to dst the headers that every backend with headers writes. These
// are op, outbox id, full refresh, key, the key before and content type, if they are set.
// The message's own Headers follow. Each backend writes ID and Subject in its own way, and
// may leave out what its far end carries in a field. Op stays the first: the Redis backend
// relies on that.
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
	if m.BeforeKey != "" {
		dst = append(dst, Header{HeaderBeforeKey, m.BeforeKey})
	}
	if m.ContentType != "" {
		dst = append(dst, Header{HeaderContentType, m.ContentType})
	}
	return append(dst, m.Headers...)
}

// MaxDeliveryID is the length in bytes up to which a delivery id has the event's id. A
// longer one has a hash in its place, so that every far end takes it.
const MaxDeliveryID = 64

// DeliveryID returns the id under which the pipeline of that identity delivers the event
// of that id: "identity.id", at most 64 bytes. Of a longer id it has 40 hexadecimal
// digits of its SHA-256 hash, after an "h". Identities have the same length, so two
// pipelines never share one. Without an identity it is the event's id.
func DeliveryID(identity, id string) string {
	if identity == "" {
		return id
	}
	if len(identity)+1+len(id) <= MaxDeliveryID {
		return identity + "." + id
	}
	return identity + ".h" + Hash([]byte(id))[:40]
}

// Hash returns the SHA-256 hash of b in hexadecimal, as the id of a body that has none.
func Hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Delivers reports whether delivery is a delivery id of the event of that id.
func Delivers(delivery, id string) bool {
	identity, _, ok := strings.Cut(delivery, ".")
	return ok && DeliveryID(identity, id) == delivery
}

// Delivery returns the DeliveryID, or the ID of a message without one.
func (m *Message) Delivery() string {
	if m.DeliveryID == "" {
		return m.ID
	}
	return m.DeliveryID
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

// AddWireHeader is the inverse of [Message.WireHeaders] for a source. It sets the
// field of a standard header, and adds any other to Headers with its name in lower
// case.
func (m *Message) AddWireHeader(name, value string) {
	switch {
	case sameHeader(name, HeaderDedupKey):
		m.ID = value
	case sameHeader(name, HeaderPipelineID): // of the relay that wrote it, for its own use
	case sameHeader(name, HeaderOp):
		m.Op = value
	case sameHeader(name, HeaderOutboxID):
		m.OutboxID, _ = strconv.ParseInt(value, 10, 64)
	case sameHeader(name, HeaderFullRefresh):
		m.FullRefresh = value == "true"
	case sameHeader(name, HeaderKey):
		m.Key = value
	case sameHeader(name, HeaderBeforeKey):
		m.BeforeKey = value
	case sameHeader(name, HeaderSubject):
		m.Subject = value
	case sameHeader(name, HeaderContentType):
		m.ContentType = value
	default:
		m.Headers = append(m.Headers, Header{strings.ToLower(name), value})
	}
}

// WroteRelay reports whether a header of that name shows that a relay wrote the message.
// Such a message's id is unique in the world.
func WroteRelay(header string) bool {
	const prefix = "Pgtrickle-"
	return len(header) >= len(prefix) && strings.EqualFold(header[:len(prefix)], prefix)
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

// MessageOverhead estimates the bytes of memory of a message without the data that
// its fields point to. The struct lies in the batch that was received and in the one
// that is published, and a source has a record of its own.
const MessageOverhead = 2*int(unsafe.Sizeof(Message{})) + 48

// Size returns the bytes of memory that the message holds, for limits.
func (m *Message) Size() int {
	n := MessageOverhead + len(m.ID) + len(m.Subject) + len(m.Key) + len(m.BeforeKey)
	n += len(m.Row) + len(m.Payload.JSON) + len(m.Before) + len(m.Body)
	if m.Payload.Stream != nil {
		n += StreamMemory
	}
	for _, h := range m.Headers {
		n += len(h.Name) + len(h.Value)
	}
	return n
}
