package rabbitmqrelay

import (
	"fmt"
	"slices"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// encoder makes AMQP messages, in memory that it uses again. The client has written
// a message out when its publish call returns.
type encoder struct {
	cfg     *sinkConfig
	headers []relay.Header
	table   amqp.Table
	key     []byte
	known   map[string]string // routing keys, so that each is allocated once
}

// reset releases the last message.
func (e *encoder) reset() {
	clear(e.table)
	clear(e.headers[:cap(e.headers)])
}

// encode returns the routing key and the AMQP message of m, or why AMQP or the
// broker cannot transport it.
func (e *encoder) encode(m *relay.Message, maxBody, maxFrame int) (routing string, p amqp.Publishing, err error) {
	if routing, err = e.routing(m); err != nil {
		return "", p, err
	}
	for _, text := range [...]struct{ name, value string }{
		{"routing key", routing}, {"id", m.ID}, {"op", m.Op}, {"content type", m.ContentType},
	} {
		if len(text.value) > maxShortString {
			return "", p, tooLong(m, text.name, len(text.value))
		}
	}
	if len(m.Body) > maxBody {
		return "", p, errTooLarge(m, maxBody)
	}

	e.headers = m.WireHeaders(e.headers[:0])
	e.headers = slices.DeleteFunc(e.headers, func(h relay.Header) bool { return h.Name == relay.HeaderContentType }) // a property
	if m.Subject != "" {
		e.headers = append(e.headers, relay.Header{Name: relay.HeaderSubject, Value: m.Subject})
	}
	size := 0
	for _, h := range e.headers {
		if len(h.Name) > maxShortString {
			return "", p, tooLong(m, "name of a header", len(h.Name))
		}
		size += len(h.Name) + len(h.Value) + 8
	}
	if maxFrame > 0 && size > maxFrame-2048 {
		return "", p, relay.Permanent(fmt.Errorf("headers of %s have %d bytes, the broker's frame_max is %d", m.ID, size, maxFrame))
	}

	p = amqp.Publishing{
		Headers: e.fields(), ContentType: m.ContentType, MessageId: m.ID, Type: m.Op, Timestamp: m.Time, Body: m.Body,
		DeliveryMode: amqp.Transient,
	}
	if e.cfg.Persistent {
		p.DeliveryMode = amqp.Persistent
	}
	return routing, p, nil
}

func (e *encoder) routing(m *relay.Message) (string, error) {
	var err error
	if e.key, err = e.cfg.RoutingKey.Append(e.key[:0], m); err != nil {
		return "", err
	}
	routing, ok := e.known[string(e.key)]
	if !ok {
		if len(e.known) >= maxKnownKeys {
			clear(e.known)
		}
		routing = string(e.key)
		e.known[routing] = routing
	}
	return routing, nil
}

// fields returns the table of the headers. It changes only the fields that differ
// from the message before: a string in an interface costs an allocation.
func (e *encoder) fields() amqp.Table {
	set := func() {
		for _, h := range e.headers {
			if old, ok := e.table[h.Name].(string); !ok || old != h.Value {
				e.table[h.Name] = h.Value
			}
		}
	}
	set()
	if len(e.table) != len(e.headers) { // the message before had others
		clear(e.table)
		set()
	}
	return e.table
}

func tooLong(m *relay.Message, what string, length int) error {
	return refusals.Classify(fmt.Errorf("%s of %.300s has %d bytes, AMQP allows %d", what, m.ID, length, maxShortString), longText, false)
}

func errTooLarge(m *relay.Message, limit int) error {
	return relay.Permanent(fmt.Errorf("body of %s has %d bytes, the broker's max_message_size is %d", m.ID, len(m.Body), limit))
}
