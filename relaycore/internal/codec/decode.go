package codec

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/jsonscan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/reshape"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// DecoderConfig has the origins of an inbox's columns. Each of the From fields is
// "header:NAME", "body:PATH" (member names joined by dots), "subject", "key", or ""
// for the message's own field.
type DecoderConfig struct {
	// Format is that of the bodies. "" and envelope unwrap a body in the shape of
	// the relay's envelope, and take any other JSON as the row. payload takes every
	// body as the row.
	Format          string
	EventIDFrom     string
	IDPrefix        string // all ids begin with it
	EventTypeFrom   string
	AggregateIDFrom string
	SourceFrom      string
	// Columns change the rows, and the bodies around them, before anything else is made
	// of them. nil changes nothing.
	Columns *reshape.Columns
	// Check refuses a message whose key and columns are known; nil refuses none.
	Check func(m *relay.Message) error
	// JQ filters and transforms rows once their keys are known; nil does not.
	JQ *reshape.JQ
}

// Decoder fills Row, and the other fields that are in the body, of reverse messages.
// It is used by one goroutine.
type Decoder struct {
	prefix                   string
	columns                  *reshape.Columns
	check                    func(m *relay.Message) error
	jq                       *reshape.JQ
	images                   bool // bodies have a row before and one after the change
	unwrap                   func(m *relay.Message) error
	id, subject, key, origin picker
}

type picker func(m *relay.Message) (string, bool)

// NewDecoder returns an error when the format is unknown or a From field has no
// meaning.
func NewDecoder(cfg DecoderConfig) (*Decoder, error) {
	d := &Decoder{prefix: cfg.IDPrefix, columns: cfg.Columns, check: cfg.Check, jq: cfg.JQ, images: cfg.Format == FormatDebezium}
	switch cfg.Format {
	case "", FormatEnvelope:
		d.unwrap = unwrapEnvelope
	case FormatPayload:
		d.unwrap = validate
	case FormatCloudEvents:
		d.unwrap = unwrapCloudEvent
	case FormatDebezium:
		d.unwrap = unwrapDebezium
	default:
		return nil, fmt.Errorf("unknown format %q", cfg.Format)
	}
	var errs [4]error
	d.id, errs[0] = newPicker("event_id_from", cfg.EventIDFrom)
	d.subject, errs[1] = newPicker("event_type_from", cfg.EventTypeFrom)
	d.key, errs[2] = newPicker("aggregate_id_from", cfg.AggregateIDFrom)
	d.origin, errs[3] = newPicker("source_from", cfg.SourceFrom)
	return d, errors.Join(errs[:]...)
}

func newPicker(key, from string) (picker, error) {
	kind, arg, _ := strings.Cut(from, ":")
	switch {
	case from == "":
		return nil, nil
	case kind == "header" && arg != "":
		return func(m *relay.Message) (string, bool) { return m.Header(arg) }, nil
	case kind == "body" && arg != "":
		path := strings.Split(strings.TrimPrefix(arg, "$."), ".")
		return func(m *relay.Message) (string, bool) { return bodyText(m.Body, path) }, nil
	case from == "subject":
		return func(m *relay.Message) (string, bool) { return m.Subject, m.Subject != "" }, nil
	case from == "key":
		return func(m *relay.Message) (string, bool) { return m.Key, m.Key != "" }, nil
	}
	return nil, fmt.Errorf(`key %q: %q is none of "header:NAME", "body:PATH", "subject", "key"`, key, from)
}

func bodyText(body []byte, path []string) (string, bool) {
	for _, name := range path {
		value, ok := jsonscan.Field(body, name)
		if !ok {
			return "", false
		}
		body = value
	}
	return jsonText(body), true
}

// Decode fills the messages of batch. One whose body is not JSON, or that lacks
// what its inbox row is to be made from, gets an Err.
func (d *Decoder) Decode(batch []relay.Message) {
	for i := range batch {
		switch m := &batch[i]; {
		case m.Err == nil:
			m.Err = d.decode(m)
			if !strings.HasPrefix(m.ID, d.prefix) { // a dead letter's may have it
				m.ID = d.prefix + m.ID
			}
			if m.Err == nil && d.check != nil {
				m.Err = d.check(m)
			}
			if m.Err == nil && d.jq != nil {
				d.jq.Apply(m)
			}
		case d.columns != nil:
			d.columns.Apply(m)
		}
	}
}

func (d *Decoder) decode(m *relay.Message) error {
	// A source fills the row of a message that has no body, such as a tombstone.
	tombstone := m.Body == nil && m.Row != nil
	if !tombstone {
		m.Row = m.Body
		if err := d.unwrap(m); err != nil {
			m.Err = relay.Permanent(err)
			if d.columns != nil {
				d.columns.Apply(m)
			}
			return m.Err
		}
	}
	if d.columns != nil {
		if err := d.applyColumns(m); err != nil {
			return err
		}
	}
	for _, p := range []struct {
		pick   picker
		field  *string
		wanted string
	}{
		{d.id, &m.ID, "event_id_from"},
		{d.subject, &m.Subject, ""},
		{d.key, &m.Key, ""},
		{d.origin, &m.Origin, ""},
	} {
		if p.pick == nil {
			continue
		}
		value, ok := p.pick(m)
		switch {
		case ok && value != "":
			*p.field = value
		case p.wanted != "" && !tombstone: // which keeps the id of its position
			// Without its identity a redelivery would become a second row.
			return relay.Permanent(fmt.Errorf("message %s does not have what %s names", m.ID, p.wanted))
		}
	}
	if m.Op == "" {
		m.Op = relay.OpEvent
	}
	return nil
}

// applyColumns changes the row, and the row's text in the body: a dead letter keeps the
// body, and other fields may be taken from it.
func (d *Decoder) applyColumns(m *relay.Message) error {
	body, images := m.Body, [][]byte{m.Row, m.Before}
	if d.images {
		for _, at := range [][]string{{"before"}, {"after"}, {"payload", "before"}, {"payload", "after"}} {
			image := m.Body
			for _, name := range at {
				image, _ = jsonscan.Field(image, name)
			}
			images = append(images, image)
		}
	}
	for _, image := range images {
		if len(image) == 0 || image[0] != '{' || bytes.Equal(image, m.Body) {
			continue
		}
		masked, err := d.columns.Row(image)
		if err != nil {
			return relay.Permanent(err)
		}
		body = bytes.ReplaceAll(body, image, masked)
	}
	whole := bytes.Equal(m.Row, m.Body)
	d.columns.Apply(m)
	if m.Body = body; whole {
		m.Body = m.Row
	}
	return m.Err
}

func validate(m *relay.Message) error {
	if !jsonscan.Valid(m.Body) {
		return notJSON(m)
	}
	return nil
}

func notJSON(m *relay.Message) error {
	return fmt.Errorf("the body of message %s is not JSON", m.ID)
}

var (
	envelopeStart  = []byte(`{"dedup_key":`)
	envelopeFields = []string{"dedup_key", "subject", "payload", "op", "is_full_refresh", "outbox_id", "refresh_id", "before_key"}
)

// unwrapEnvelope recognises our envelope by its first member, which only our
// encoder would put first, and by having the others too.
func unwrapEnvelope(m *relay.Message) error {
	if !bytes.HasPrefix(m.Body, envelopeStart) {
		return validate(m)
	}
	var v [8][]byte
	if jsonscan.Fields(m.Body, envelopeFields, v[:]) != nil {
		return notJSON(m)
	}
	if slices.ContainsFunc(v[:7], func(b []byte) bool { return b == nil }) {
		return nil // not the relay's envelope
	}
	id := same(m.ID, v[0])
	if id == "" {
		return nil
	}
	m.ID, m.Row = id, v[2]
	m.Subject, m.Op = same(m.Subject, v[1]), same(m.Op, v[3])
	m.FullRefresh = string(v[4]) == "true"
	m.OutboxID, _ = strconv.ParseInt(string(v[5]), 10, 64)
	m.RefreshID = jsonText(v[6])
	if v[7] != nil {
		m.BeforeKey = same(m.BeforeKey, v[7])
	}
	return nil
}

func jsonText(value []byte) string { return string(jsonscan.AppendText(nil, value)) }

// same returns the text of a JSON value. It returns known if that is the same, which
// saves an allocation for a value that was in a header, too.
func same(known string, value []byte) string {
	if len(value) == len(known)+2 && string(value[1:len(value)-1]) == known {
		return known
	}
	return jsonText(value)
}

var cloudEventFields = []string{"id", "source", "type", "data", "partitionkey", "pgtrickleop", "time", "data_base64"}

// unwrapCloudEvent takes an event's data for the row. Binary data is no JSON value:
// with it the whole event becomes the row, so that nothing of it is lost.
func unwrapCloudEvent(m *relay.Message) error {
	var v [8][]byte
	if jsonscan.Fields(m.Body, cloudEventFields, v[:]) == nil && usualCloudEvent(m, v) {
		return nil
	}
	return anyCloudEvent(m)
}

func anyCloudEvent(m *relay.Message) error {
	if err := validate(m); err != nil {
		return err
	}
	var e struct {
		ID, Source, Type, PartitionKey, PgtrickleOp string
		Time                                        time.Time
		Data                                        json.RawMessage
		Binary                                      *string `json:"data_base64"`
	}
	if err := json.Unmarshal(m.Body, &e); err != nil {
		return fmt.Errorf("message %s is not a CloudEvents event: %w", m.ID, err)
	}
	if e.ID == "" || e.Type == "" || e.Source == "" {
		return fmt.Errorf("message %s is not a CloudEvents event in structured mode: id, source and type are required", m.ID)
	}
	m.ID, m.Subject, m.Origin = relay.CloudEventID(e.Source, e.ID), e.Type, e.Source
	switch {
	case e.Binary != nil:
		m.Row = m.Body
	case e.Data != nil:
		m.Row = e.Data
	default:
		m.Row = []byte("null")
	}
	if e.PartitionKey != "" {
		m.Key = e.PartitionKey
	}
	if e.PgtrickleOp != "" {
		m.Op = e.PgtrickleOp
	}
	if !e.Time.IsZero() {
		m.Time = e.Time
	}
	return nil
}

// usualCloudEvent fills m from the values of cloudEventFields, and reports whether the
// event has the usual form. Then its attributes are strings, and its data is not binary.
// The general way costs four times as much.
func usualCloudEvent(m *relay.Message, v [8][]byte) bool {
	text := func(i int) string {
		if len(v[i]) < 2 || v[i][0] != '"' {
			return ""
		}
		return jsonText(v[i])
	}
	id, source, kind := text(0), text(1), text(2)
	if id == "" || source == "" || kind == "" || v[3] == nil || v[7] != nil {
		return false
	}
	for _, value := range v[4:7] {
		if value != nil && value[0] != '"' {
			return false
		}
	}
	at := m.Time
	if v[6] != nil && at.UnmarshalJSON(v[6]) != nil {
		return false
	}
	m.ID, m.Subject, m.Origin, m.Row = relay.CloudEventID(source, id), kind, source, v[3]
	m.Key, m.Op = cmp.Or(text(4), m.Key), cmp.Or(text(5), m.Op)
	if !at.IsZero() {
		m.Time = at
	}
	return true
}

var debeziumFields = []string{"payload", "op", "before", "after", "ts_ms", "source"}

// unwrapDebezium takes the row after the change, or the one before a delete,
// with or without the schema around it.
func unwrapDebezium(m *relay.Message) error {
	if usualDebezium(m) {
		return nil
	}
	return anyDebezium(m)
}

// usualDebezium fills m, and reports whether the event has the usual form. The general
// way costs four times as much.
func usualDebezium(m *relay.Message) bool {
	var v [6][]byte
	if jsonscan.Fields(m.Body, debeziumFields, v[:]) != nil {
		return false
	}
	if v[0] != nil && (v[0][0] != '{' || jsonscan.Fields(v[0], debeziumFields, v[:]) != nil) {
		return false
	}
	op, row, before := relay.OpInsert, v[3], []byte(nil)
	switch string(v[1]) {
	case `"c"`, `"r"`:
	case `"u"`:
		op, before = relay.OpUpdate, v[2]
	case `"d"`:
		op, row = relay.OpDelete, v[2]
	default:
		return false
	}
	var source [2][]byte
	at, err := strconv.ParseInt(string(v[4]), 10, 64)
	if err != nil || row == nil || v[5] == nil || jsonscan.Fields(v[5], []string{"id", "table"}, source[:]) != nil {
		return false
	}
	for _, value := range source {
		if value != nil && value[0] != '"' {
			return false
		}
	}
	m.Op, m.Row, m.FullRefresh = op, row, string(v[1]) == `"r"`
	if before != nil {
		m.Before = before
	}
	if source[0] != nil {
		m.ID = cmp.Or(same(m.ID, source[0]), m.ID)
	}
	if at != 0 {
		m.Time = time.UnixMilli(at)
	}
	return true
}

func anyDebezium(m *relay.Message) error {
	if err := validate(m); err != nil {
		return err
	}
	type change struct {
		Before json.RawMessage `json:"before"`
		After  json.RawMessage `json:"after"`
		Op     string          `json:"op"`
		TSMS   int64           `json:"ts_ms"`
		Source struct {
			ID    string `json:"id"`
			Table string `json:"table"`
		} `json:"source"`
	}
	var e struct {
		Payload *change `json:"payload"`
		change
	}
	if err := json.Unmarshal(m.Body, &e); err != nil {
		return fmt.Errorf("message %s is not a Debezium event: %w", m.ID, err)
	}
	c := &e.change
	if e.Payload != nil {
		c = e.Payload
	}
	switch c.Op {
	case "c", "r":
		m.Op, m.Row = relay.OpInsert, c.After
	case "u":
		m.Op, m.Row, m.Before = relay.OpUpdate, c.After, c.Before
	case "d":
		m.Op, m.Row = relay.OpDelete, c.Before
	default:
		return fmt.Errorf("message %s is not a Debezium event: op %q", m.ID, c.Op)
	}
	if m.Row == nil {
		return fmt.Errorf("message %s: a Debezium event of op %q without its row", m.ID, c.Op)
	}
	m.FullRefresh = c.Op == "r"
	if c.Source.ID != "" {
		m.ID = c.Source.ID
	}
	if c.TSMS != 0 {
		m.Time = time.UnixMilli(c.TSMS)
	}
	return nil
}
