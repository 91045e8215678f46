package relay

import (
	"context"
	"strings"
)

// Tombstoner is a [Sink] whose far end can keep the last message of each key until it gets
// one without a body. A compacted topic of Kafka does.
type Tombstoner interface {
	// Tombstones reports whether the far end is to have the tombstone m. It is called
	// between two calls of Publish, and again after an error. Where m alone has no
	// destination it returns true: Publish refuses m then, and nothing is lost.
	Tombstones(ctx context.Context, m *Message) (bool, error)
}

const tombstoneSuffix = ":tombstone"

// EndedKey returns the key of which m is the last message: that of a deleted row, or the
// one that an update took away. "" means none.
func (m *Message) EndedKey() string {
	switch {
	case m.IsTombstone():
		return ""
	case m.Op == OpDelete:
		return m.Key
	default:
		return m.BeforeKey
	}
}

// Tombstone returns the message without a body that ends a key behind m. It is a message
// of its own: its id is that of m with ":tombstone" behind it. Its Row is the one that
// had the key, for templates.
func (m *Message) Tombstone(key string) Message {
	t := *m
	t.ID, t.DeliveryID = m.ID+tombstoneSuffix, ""
	t.Op, t.Key, t.BeforeKey = OpDelete, key, ""
	if m.Op != OpDelete && m.Before != nil {
		t.Row = m.Before
	}
	t.Payload, t.Before, t.Body, t.ContentType, t.FullRefresh = Payload{}, nil, nil, "", false
	return t
}

// IsTombstone reports whether [Message.Tombstone] made m.
func (m *Message) IsTombstone() bool {
	return m.Op == OpDelete && strings.HasSuffix(m.ID, tombstoneSuffix)
}

// EventID returns the id of the event that a message of that id is about: without what
// [Message.Tombstone] adds.
func EventID(id string) string { return strings.TrimSuffix(id, tombstoneSuffix) }
