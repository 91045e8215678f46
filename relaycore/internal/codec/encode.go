package codec

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/jsonscan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/reshape"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Formats of a body.
const (
	FormatEnvelope    = "envelope"
	FormatPayload     = "payload"
	FormatCloudEvents = "cloudevents"
	FormatDebezium    = "debezium"
)

// Content types of the formats.
const (
	typeJSON        = "application/json"
	typeCloudEvents = "application/cloudevents+json"
)

// EncoderConfig describes how rows become messages.
type EncoderConfig struct {
	Subject     relay.Template // of every message
	Format      string         // "" means envelope
	KeyField    string         // a field of the row
	KeyTemplate relay.Template // goes before KeyField
	KeyColumns  []string       // the primary key, if none of the other two is set
	// LookUpKey returns the present KeyColumns, for a row that lacks one of them, because
	// columns can be renamed; may be nil.
	LookUpKey func() ([]string, error)
	Headers   map[string]relay.Template // added to every message
	Version   string                    // of the relay, for debezium's source

	// Columns change the rows before anything is made of them; nil changes nothing.
	Columns *reshape.Columns
	// JQ filters and transforms rows once their keys and headers are known; nil does not.
	JQ *reshape.JQ
	// KeepInternal leaves the columns in the rows that pg_trickle adds for itself.
	KeepInternal bool
}

// Encoder fills Subject, Key, Headers, Body and ContentType of forward messages.
// It is used by one goroutine.
type Encoder struct {
	cfg      EncoderConfig
	write    func(dst []byte, m *relay.Message, payload []byte) []byte
	mime     string
	headers  []header
	subjects map[subjectKey]string // renderings of a subject that does not look into rows
	recent   rendering             // the one that was used last
	text     []byte                // keys and subjects of the batch in hand
	spans    []span
	internal *reshape.Columns // leaves out what KeepInternal is about
	keys     [][]string       // primary keys of rows, the present one first
	asked    time.Time        // when LookUpKey was last called
}

type header struct {
	name  string
	value relay.Template
}

type subjectKey struct{ table, op string }

// rendering is a subject for all messages of a table and operation, and how it
// stands in an envelope.
type rendering struct {
	key     subjectKey
	subject string
	middle  []byte
}

// span is where a message's strings lie in Encoder.text.
type span struct {
	subject, key, end int
	read              bool // the whole row is known
}

// NewEncoder returns an error when the format is unknown.
func NewEncoder(cfg EncoderConfig) (*Encoder, error) {
	e := &Encoder{cfg: cfg, mime: typeJSON, subjects: make(map[subjectKey]string), internal: reshape.WithoutPrefix("__pgt_")}
	switch cfg.Format {
	case "", FormatEnvelope:
		e.write = e.appendEnvelope
	case FormatPayload:
		e.write = nil
	case FormatCloudEvents:
		e.write, e.mime = appendCloudEvent, typeCloudEvents
	case FormatDebezium:
		e.write = e.appendDebezium
	default:
		return nil, fmt.Errorf("unknown format %q", cfg.Format)
	}
	if len(cfg.KeyColumns) > 0 {
		e.keys = [][]string{cfg.KeyColumns}
	}
	for name, value := range cfg.Headers {
		e.headers = append(e.headers, header{name, value})
	}
	return e, nil
}

// Encode fills the messages of batch. The bodies are appended to buf, which it
// returns for reuse once the batch is settled. A message that cannot be encoded
// gets an Err and keeps its row.
func (e *Encoder) Encode(batch []relay.Message, buf []byte) []byte {
	e.text, e.spans = e.text[:0], e.spans[:0]
	if e.cfg.Columns != nil {
		for i := range batch {
			if batch[i].Op != relay.OpSnapshotEnd && !batch[i].IsTombstone() {
				e.cfg.Columns.Apply(&batch[i])
			}
		}
	}
	for i := range batch {
		e.spans = append(e.spans, e.address(&batch[i]))
	}
	if !e.cfg.KeepInternal {
		e.dropInternal(batch)
	}
	text := string(e.text) // the batch's strings, in one allocation
	if e.write != nil {
		// A buffer that grows on the way would leave its earlier self behind,
		// held by the bodies that are in it.
		if need := e.estimate(batch); cap(buf)-len(buf) < need {
			buf = make([]byte, 0, need)
		}
	}
	for i := range batch {
		m, s := &batch[i], e.spans[i]
		if m.Subject == "" {
			m.Subject = text[s.subject:s.key]
		}
		if m.Key == "" {
			m.Key = text[s.key:s.end]
		}
		if e.cfg.JQ != nil && s.read { // the filter may drop what has no subject
			e.cfg.JQ.Apply(m)
		}
		if m.Err != nil || m.IsTombstone() {
			continue
		}
		m.ContentType = e.mime
		if m.Payload.Stream != nil {
			e.frame(m)
			continue
		}
		payload := m.Row
		if m.Payload.JSON != nil {
			payload = m.Payload.JSON
		}
		if e.write == nil {
			m.Body = payload
			continue
		}
		start := len(buf)
		buf = e.write(buf, m, payload)
		m.Body = buf[start:len(buf):len(buf)]
	}
	return buf
}

// frame puts what surrounds the row in a body around the row of a stream. A NUL stands for
// the row, because the formats escape it everywhere else.
func (e *Encoder) frame(m *relay.Message) {
	if e.write == nil {
		return
	}
	members := m.Row
	m.Row = []byte{0}
	body := e.write(nil, m, m.Row)
	m.Row = members
	m.Payload.Stream.Before, m.Payload.Stream.After, _ = bytes.Cut(body, []byte{0})
}

// internalColumns begin so; the extension adds them to its stream tables.
var internalColumns = []byte(`"__pgt_`)

// dropInternal takes the extension's own columns out of the rows. Keys, subjects and
// headers are rendered before, so they may use them.
func (e *Encoder) dropInternal(batch []relay.Message) {
	for i := range batch {
		m := &batch[i]
		switch {
		case m.Err != nil:
		case m.Payload.Stream == nil:
			m.Row, m.Before = e.without(m.Row), e.without(m.Before)
		case bytes.Contains(m.Row, internalColumns):
			m.Err = relay.Permanent(fmt.Errorf(
				"message %s is too large for memory, and a stream cannot leave the columns __pgt_* out; set keep_internal_columns", m.ID))
		}
	}
}

func (e *Encoder) without(row []byte) []byte {
	if !bytes.Contains(row, internalColumns) {
		return row
	}
	kept, err := e.internal.Row(row)
	if err != nil {
		return row // not an object
	}
	return kept
}

// estimate returns the largest total length of the bodies of batch, if nothing in
// their strings has to be escaped.
func (e *Encoder) estimate(batch []relay.Message) int {
	const frame = 256 // the longest of the formats' own text
	n := len(e.text)
	for i := range batch {
		m := &batch[i]
		n += len(m.Row) + len(m.Before) + len(m.ID) + len(m.Subject) + len(m.RefreshID) + frame
	}
	return n
}

// address renders the message's subject, key and headers. A part that cannot be
// rendered is left empty, because a dead letter is rendered again when its template is
// corrected. The key is rendered even if the subject fails, because a dead letter
// parks its key.
func (e *Encoder) address(m *relay.Message) (s span) {
	marker := m.Op == relay.OpSnapshotEnd // what it carries is no row of the table
	s.read = m.Err == nil && !marker && !m.IsTombstone()
	known := m.Err == nil || m.Row != nil // otherwise it stands for rows that could not be read
	s.subject = len(e.text)
	if m.Subject == "" {
		m.Err = cmp.Or(m.Err, e.subject(m))
	}
	s.key = len(e.text)
	if m.Key == "" && known && !marker {
		m.Err = cmp.Or(m.Err, e.key(m))
	}
	s.end = len(e.text)
	if m.Op == relay.OpUpdate && m.Before != nil && m.Err == nil {
		e.beforeKey(m, s)
	}
	if m.Err != nil || len(e.headers) == 0 {
		return s
	}
	own := make([]relay.Header, 0, len(m.Headers)+len(e.headers))
	for _, h := range m.Headers {
		if _, configured := e.cfg.Headers[h.Name]; !configured {
			own = append(own, h)
		}
	}
	for _, h := range e.headers {
		if marker && h.value.PerMessage() {
			continue
		}
		value, err := h.value.Render(m)
		if err != nil {
			m.Err = cmp.Or(m.Err, wrapKey(err, "headers."+h.name))
			continue
		}
		own = append(own, relay.Header{Name: h.name, Value: value})
	}
	m.Headers = own
	return s
}

// wrapKey prefixes err with the configuration key that caused it.
func wrapKey(err error, key string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", key, err)
}

// maxSubjects bounds the memory of renderings: tables times operations.
const maxSubjects = 1000

func (e *Encoder) subject(m *relay.Message) (err error) {
	if e.cfg.Subject.PerMessage() {
		e.text, err = e.cfg.Subject.Append(e.text, m)
		return wrapKey(err, "subject_template")
	}
	if m.StreamTable == e.recent.key.table && m.Op == e.recent.key.op && e.recent.subject != "" {
		m.Subject = e.recent.subject
		return nil
	}
	k := subjectKey{m.StreamTable, m.Op}
	s, ok := e.subjects[k]
	if !ok {
		if s, err = e.cfg.Subject.Render(m); err != nil {
			return wrapKey(err, "subject_template")
		}
		if len(e.subjects) < maxSubjects {
			e.subjects[k] = s
		}
	}
	m.Subject = s
	e.recent = rendering{k, s, appendMiddle(nil, s)}
	return nil
}

func (e *Encoder) key(m *relay.Message) (err error) {
	switch {
	case !e.cfg.KeyTemplate.IsZero():
		e.text, err = e.cfg.KeyTemplate.Append(e.text, m)
		return wrapKey(err, "key_template")
	case e.cfg.KeyField != "":
		value, ok := jsonscan.First(m.Row, e.cfg.KeyField)
		if !ok {
			return relay.Permanent(fmt.Errorf("key_field %q: the row of %s has no such field", e.cfg.KeyField, m.ID))
		}
		e.text = appendKeyText(e.text, value)
		return nil
	}
	start := len(e.text)
	if err = e.primaryKey(m); len(e.text) == start {
		id, _ := m.Header(relay.HeaderRowID)
		e.text = append(e.text, id...)
	}
	return err
}

// askEvery bounds how often LookUpKey is called, for projections without their primary
// key.
const askEvery = time.Second

// primaryKey appends the values of the primary key. A row that was written before a
// column was renamed has its old name, so the keys before are tried, too. Otherwise the
// row has no key.
func (e *Encoder) primaryKey(m *relay.Message) error {
	if len(e.keys) == 0 || e.appendKey(m.Row) || e.cfg.LookUpKey == nil || time.Since(e.asked) < askEvery {
		return nil
	}
	if _, numbered := m.Header(relay.HeaderRowID); numbered {
		return nil
	}
	now, err := e.cfg.LookUpKey()
	if err != nil {
		return fmt.Errorf("look up the primary key for %s: %w", m.ID, err)
	}
	e.asked = time.Now()
	if len(now) > 0 && !slices.Equal(now, e.keys[0]) {
		e.keys = append([][]string{now}, e.keys[:min(len(e.keys), maxKeys-1)]...)
		e.appendKey(m.Row)
	}
	return nil
}

// maxKeys bounds the primary keys that are tried.
const maxKeys = 4

func (e *Encoder) appendKey(row []byte) bool {
	start := len(e.text)
	for _, columns := range e.keys {
		missing := false
		for i, column := range columns {
			value, ok := jsonscan.First(row, column)
			if missing = !ok; missing {
				break
			}
			if i > 0 {
				e.text = append(e.text, ',')
			}
			e.text = appendKeyText(e.text, value)
		}
		if !missing {
			return true
		}
		e.text = e.text[:start]
	}
	return false
}

// beforeKey sets the key of the row before an update, if the update changed it. A key
// that was given beside the row is not compared, as the one before is not known.
func (e *Encoder) beforeKey(m *relay.Message, s span) {
	before := e.rowKey(m, m.Before)
	if len(before) == 0 || string(before) == m.Key || m.Key == "" && bytes.Equal(before, e.text[s.key:s.end]) {
		return
	}
	text := string(before)
	if m.Key == "" || string(e.rowKey(m, m.Row)) == m.Key {
		m.BeforeKey = text
	}
}

// rowKey returns the key that row has of itself, empty if it has none. It is valid until
// the next key is appended.
func (e *Encoder) rowKey(m *relay.Message, row []byte) []byte {
	text, after := e.text, m.Row
	defer func() { e.text, m.Row = text, after }()
	m.Row = row
	start := len(e.text)
	switch {
	case !e.cfg.KeyTemplate.IsZero():
		e.text, _ = e.cfg.KeyTemplate.Append(e.text, m) // of half a key nothing is left
	case e.cfg.KeyField != "":
		if value, ok := jsonscan.First(row, e.cfg.KeyField); ok {
			e.text = appendKeyText(e.text, value)
		}
	default:
		e.appendKey(row)
	}
	return e.text[start:len(e.text):len(e.text)]
}

func (e *Encoder) appendEnvelope(dst []byte, m *relay.Message, payload []byte) []byte {
	dst = append(dst, `{"dedup_key":`...)
	dst = appendString(dst, m.ID)
	if m.Subject != "" && m.Subject == e.recent.subject {
		dst = append(dst, e.recent.middle...)
	} else {
		dst = appendMiddle(dst, m.Subject)
	}
	dst = append(dst, payload...)
	dst = append(dst, `,"op":`...)
	dst = appendString(dst, m.Op)
	if m.FullRefresh {
		dst = append(dst, `,"is_full_refresh":true,"outbox_id":`...)
	} else {
		dst = append(dst, `,"is_full_refresh":false,"outbox_id":`...)
	}
	dst = strconv.AppendInt(dst, m.OutboxID, 10)
	if m.RefreshID == "" {
		dst = append(dst, `,"refresh_id":null`...)
	} else {
		dst = append(dst, `,"refresh_id":`...)
		dst = appendString(dst, m.RefreshID)
	}
	if m.BeforeKey != "" {
		dst = append(dst, `,"before_key":`...)
		dst = appendString(dst, m.BeforeKey)
	}
	return append(dst, '}')
}

// appendMiddle writes what stands between an envelope's key and its row.
func appendMiddle(dst []byte, subject string) []byte {
	dst = append(dst, `,"subject":`...)
	dst = appendString(dst, subject)
	return append(dst, `,"payload":`...)
}

// appendCloudEvent writes a CloudEvents 1.0 event in structured mode. The key is
// its partitionkey extension, the operation its pgtrickleop extension.
func appendCloudEvent(dst []byte, m *relay.Message, payload []byte) []byte {
	dst = append(dst, `{"specversion":"1.0","id":`...)
	dst = appendString(dst, m.ID)
	dst = append(dst, `,"source":`...)
	dst = appendString(dst, relay.CloudEventsSource+m.StreamTable)
	dst = append(dst, `,"type":`...)
	dst = appendString(dst, m.Subject)
	if year := m.Time.UTC().Year(); !m.Time.IsZero() && year >= 0 && year <= 9999 { // as RFC 3339 has them
		dst = append(dst, `,"time":"`...)
		dst = m.Time.UTC().AppendFormat(dst, time.RFC3339Nano)
		dst = append(dst, '"')
	}
	dst = append(dst, `,"datacontenttype":"application/json","pgtrickleop":`...)
	dst = appendString(dst, m.Op)
	if m.Key != "" {
		dst = append(dst, `,"partitionkey":`...)
		dst = appendString(dst, m.Key)
	}
	dst = append(dst, `,"data":`...)
	dst = append(dst, payload...)
	return append(dst, '}')
}

var debeziumOps = map[string]string{relay.OpInsert: "c", relay.OpUpdate: "u", relay.OpDelete: "d"}

// appendDebezium writes Debezium's JSON envelope, without schema. It has two rows, so a
// pipeline with a transform cannot have this format.
func (e *Encoder) appendDebezium(dst []byte, m *relay.Message, _ []byte) []byte {
	op := debeziumOps[m.Op]
	if m.FullRefresh && m.Op == relay.OpInsert {
		op = "r" // a snapshot's row, to be upserted
	}
	before, after := m.Before, m.Row
	if m.Op == relay.OpDelete {
		before, after = m.Row, nil
	}
	millis := m.Time.UnixMilli()
	if m.Time.IsZero() {
		millis = 0
	}
	dst = append(dst, `{"schema":null,"payload":{"before":`...)
	dst = appendRowOrNull(dst, before)
	dst = append(dst, `,"after":`...)
	dst = appendRowOrNull(dst, after)
	dst = append(dst, `,"op":`...)
	dst = appendString(dst, op)
	dst = append(dst, `,"ts_ms":`...)
	dst = strconv.AppendInt(dst, millis, 10)
	dst = append(dst, `,"source":{"version":`...)
	dst = appendString(dst, e.cfg.Version)
	dst = append(dst, `,"connector":"pgtrickle","name":"pgtrickle-relay","ts_ms":`...)
	dst = strconv.AppendInt(dst, millis, 10)
	dst = append(dst, `,"table":`...)
	dst = appendString(dst, m.StreamTable)
	dst = append(dst, `,"id":`...)
	dst = appendString(dst, m.ID)
	return append(dst, `}}}`...)
}

func appendRowOrNull(dst, row []byte) []byte {
	if row == nil {
		return append(dst, "null"...)
	}
	return append(dst, row...)
}

const hex = "0123456789abcdef"

// appendString appends s as a JSON string.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := range len(s) {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		}
		start = i + 1
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
