package kafkarelay

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Versions of a Metadata request that return topic ids. Brokers have them since 2.8, the
// client stops at version 8.
const (
	firstWithIDs = 10
	lastWithIDs  = 12
)

// topicIDs returns the ids of topics. A topic that does not exist, or that a broker
// before 2.8 has, has none. It asks on a connection of its own.
func (c *cluster) topicIDs(ctx context.Context, topics []string) (ids map[string]relay.Incarnation, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	for _, broker := range c.brokers {
		if ids, err = c.topicIDsFrom(ctx, broker, topics); err == nil {
			return ids, nil
		}
	}
	return nil, classify(fmt.Errorf("ask %v for the ids of topics: %w", c.brokers, err))
}

func (c *cluster) topicIDsFrom(ctx context.Context, broker string, topics []string) (map[string]relay.Incarnation, error) {
	// The client logs in. Then the connection below it is used without the client.
	var raw net.Conn
	dialer := *c.dialer
	dialer.DialFunc = func(ctx context.Context, network, address string) (_ net.Conn, err error) {
		raw, err = c.net.DialContext(ctx, network, address)
		return raw, err
	}
	conn, err := dialer.DialContext(ctx, "tcp", broker)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	versions, err := conn.ApiVersions()
	if err != nil {
		return nil, err
	}
	version := int16(0)
	for _, v := range versions {
		if protocol.ApiKey(v.ApiKey) == protocol.Metadata {
			version = min(v.MaxVersion, lastWithIDs)
		}
	}
	if version < firstWithIDs {
		return nil, nil
	}

	if _, err := raw.Write(metadataRequest(version, c.dialer.ClientID, topics)); err != nil {
		return nil, err
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(raw, head); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head)) // the guard has checked the size
	if _, err := io.ReadFull(raw, body); err != nil {
		return nil, err
	}
	return readTopicIDs(version, body)
}

// metadataRequest encodes a request about topics that creates none of them.
func metadataRequest(version int16, clientID string, topics []string) []byte {
	b := make([]byte, 4)
	b = binary.BigEndian.AppendUint16(b, uint16(protocol.Metadata))
	b = binary.BigEndian.AppendUint16(b, uint16(version))
	b = binary.BigEndian.AppendUint32(b, 1<<30) // the correlation id
	b = binary.BigEndian.AppendUint16(b, uint16(len(clientID)))
	b = append(append(b, clientID...), 0)
	b = binary.AppendUvarint(b, uint64(len(topics)+1))
	for _, name := range topics {
		b = append(b, make([]byte, 16)...) // by name, not by id
		b = binary.AppendUvarint(b, uint64(len(name)+1))
		b = append(append(b, name...), 0)
	}
	b = append(b, 0) // create no topic
	if version == firstWithIDs {
		b = append(b, 0) // no rights on the cluster
	}
	b = append(b, 0, 0) // no rights on topics
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// readTopicIDs decodes a response as far as it is needed.
func readTopicIDs(version int16, response []byte) (map[string]relay.Incarnation, error) {
	w := walker{body: response, version: version, flexible: true}
	text := func() string { return string(w.take(max(w.length(2, true), 0))) }
	w.take(4) // the correlation id
	w.tags()
	w.take(4) // throttle
	for n := w.count(w.uvarint()-1, 12); n > 0 && w.err == nil; n-- {
		w.take(4)
		text() // host
		w.take(4)
		text() // rack
		w.tags()
	}
	text() // cluster
	w.take(4)
	ids := make(map[string]relay.Incarnation)
	for n := w.count(w.uvarint()-1, 26); n > 0 && w.err == nil; n-- {
		code := w.int(2)
		name := text()
		id := w.take(16)
		w.take(1)
		for n := w.count(w.uvarint()-1, 18); n > 0 && w.err == nil; n-- {
			w.take(14) // error, id, leader, epoch
			for range 3 {
				w.take(4 * w.count(max(w.uvarint()-1, 0), 4))
			}
			w.tags()
		}
		w.take(4)
		w.tags()
		if code == 0 && w.err == nil {
			ids[name] = relay.Incarnation(base64.RawURLEncoding.EncodeToString(id))
		}
	}
	if w.err != nil {
		return nil, peer.Errorf("its answer to a Metadata request cannot be decoded: %s", w.err)
	}
	return ids, nil
}

// meet checks the topics against what the pipeline knows of them, and returns what it
// knows now.
func (s *source) meet(ctx context.Context) (map[string]relay.FarEnd, error) {
	ids, err := s.cluster.topicIDs(ctx, s.cfg.Topic)
	if err != nil {
		return nil, err
	}
	lives := make(map[string]relay.FarEnd)
	for _, topic := range s.cfg.Topic {
		if lives[topic], err = s.farEnds.Meet(ctx, "topic", topic, ids[topic]); err != nil {
			return nil, err
		}
	}
	return lives, nil
}

// recheck fails if a topic of g was created again since g began to read it.
func (s *source) recheck(ctx context.Context, g *generation) error {
	lives, err := s.meet(ctx)
	if err != nil {
		return err
	}
	for _, p := range g.parts {
		if lives[p.spot.topic].Scope() != p.spot.scope {
			return beginAgain(p.spot.topic)
		}
	}
	return nil
}

// beginAgain ends the source. The next one moves the group to the topic's beginning,
// which needs a new generation.
func beginAgain(topic string) error {
	return relay.Fatal(fmt.Errorf("read topic %q: it was created again or lost messages; the pipeline starts again at its beginning", topic))
}

// beyond returns the life in which to begin again, if a position of parts lies after the
// end of its partition; nil if none does.
func (s *source) beyond(ctx context.Context, topic string, parts []kafka.PartitionAssignment) (*relay.FarEnd, error) {
	const looks = 3 // a new leader may not know yet how far its records are replicated
	partitions := 0
	for _, a := range parts {
		partitions = max(partitions, a.ID+1)
	}
	for look := 1; ; look++ {
		ends, err := patiently(ctx, func() ([]int64, error) { return s.cluster.offsets(ctx, topic, partitions, kafka.LastOffset) })
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(parts, func(a kafka.PartitionAssignment) bool { return a.Offset > ends[a.ID] })
		if i < 0 {
			return nil, nil
		}
		if look == looks {
			life, err := s.farEnds.Lost(ctx, "topic", topic, relay.EndsBefore(ends[parts[i].ID], parts[i].Offset))
			return &life, err
		}
		if err := backoff.Sleep(ctx, 500*time.Millisecond); err != nil {
			return nil, err
		}
	}
}
