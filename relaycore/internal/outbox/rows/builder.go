package rows

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/grove/pgtrickle-relay/relaycore/internal/jsonscan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Builder turns rows into one chunk of messages after another. The messages of a
// chunk share a few large allocations; all other memory is used again.
type Builder struct {
	source  source
	ids     ids
	layout  *Layout
	settled Settled
	chunk   chunk

	// scratch memory of one row
	list    [][]byte
	inner   []jsonscan.Member
	vals    [][]byte    // values of the members of envelope
	lists   [][][]byte  // and the elements of those that are arrays
	updates [][2][]byte // rows after and before

	last  int                  // messages of the chunk before
	spare chan []relay.Message // empty slices that can be filled again
}

// source is what the builder knows of the table.
type source struct {
	stream    string
	qualified string
	plain     bool
	marker    bool // snapshots end with a message of their own
	raw       bool // the payload need not be JSON
	anyBytes  bool // text need not be UTF-8
}

// chunk is what the rows since the last Finish have become.
type chunk struct {
	msgs  []relay.Message
	slots []Slot
	bytes int
	claim *Claim // the row that ended the chunk
	large *Large // the row that ended the chunk
	whole []byte // payload that is kept as it is, without a copy

	arena []byte // payloads
	text  []byte // ids, keys and refresh ids; becomes one string
	cuts  []cut
}

// maxReused bounds the messages that a chunk makes room for because the one before
// had as many.
const maxReused = 4096

// cut is where the strings of a message are in text.
type cut struct{ delivery, id, idEnd, key, keyEnd, refresh, refreshEnd int }

// NewBuilder returns a builder for rows of t. Messages in settled get a slot only. The
// builder takes slices of messages from spare, if there are any.
func NewBuilder(t *table.Table, l *Layout, ids IDs, settled Settled, spare chan []relay.Message) *Builder {
	typ := t.Type(t.Columns.Payload)
	return &Builder{
		source: source{
			stream: t.StreamTable, qualified: t.Qualified(), plain: t.Plain,
			raw: typ != "json" && typ != "jsonb", anyBytes: t.NoEncoding,
		},
		ids:     newIDs(t, ids),
		layout:  l,
		settled: settled,
		spare:   spare,
	}
}

// SetIDs changes how ids are made, from the next row on.
func (b *Builder) SetIDs(t *table.Table, ids IDs) { b.ids = newIDs(t, ids) }

// MarkSnapshots makes a message of the end of each snapshot.
func (b *Builder) MarkSnapshots() { b.source.marker = true }

// Identified reports whether the outbox has an identity.
func (b *Builder) Identified() bool { return b.ids.outbox != "" }

// envelope lists the members of a versioned payload; vals and lists are indexed alike.
var envelope = []string{"v", "inserted", "updated", "deleted", "full_refresh", "claim_check", "refresh_id"}

// Bytes returns about how much memory the chunk takes.
func (b *Builder) Bytes() int { return b.chunk.bytes }

// Claim returns the claim check that ended the chunk, nil if none did.
func (b *Builder) Claim() *Claim { return b.chunk.claim }

// Large returns the large row that ended the chunk, nil if none did.
func (b *Builder) Large() *Large { return b.chunk.large }

// Discard drops the chunk.
func (b *Builder) Discard() {
	c := &b.chunk
	b.chunk = chunk{slots: c.slots[:0], text: c.text[:0], cuts: c.cuts[:0]}
}

// Finish returns the messages and slots of the chunk, and begins another one.
func (b *Builder) Finish() ([]relay.Message, []Slot) {
	c := &b.chunk
	text := string(c.text)
	msgs, slots := c.msgs, slices.Clone(c.slots)
	i := 0
	for s := range slots {
		if slots[s].End {
			delete(b.settled, slots[s].ID)
		}
		if slots[s].Settled {
			continue
		}
		m, at := &msgs[i], &c.cuts[i]
		m.ID = text[at.id:at.idEnd]
		m.DeliveryID = b.ids.delivery(text[at.delivery:at.idEnd], m.ID)
		m.Key = text[at.key:at.keyEnd]
		if at.refreshEnd > at.refresh {
			m.RefreshID = text[at.refresh:at.refreshEnd]
		}
		m.Token = &slots[s]
		i++
	}
	b.last = len(msgs)
	b.Discard()
	return msgs, slots
}

// keep copies p into the chunk's memory.
func (b *Builder) keep(p []byte) []byte {
	c := &b.chunk
	c.bytes += len(p)
	if len(p) > 0 && len(c.whole) > 0 && &p[0] == &c.whole[0] {
		return p
	}
	if cap(c.arena)-len(c.arena) < len(p) {
		c.arena = make([]byte, 0, max(len(p), min(max(2*cap(c.arena), 16<<10), 512<<10)))
	}
	n := len(c.arena)
	c.arena = append(c.arena, p...)
	return c.arena[n:len(c.arena):len(c.arena)]
}

// event is what the messages of a row have in common.
type event struct {
	id                  int64
	idText              []byte
	created             time.Time
	refresh, refreshEnd int // in text
	key, keyEnd         int
	given               []byte // the message's id as the application gave it; nil if it did not
	index               int
}

// Row adds the messages of one row. It returns false if the row is a claim check, or has
// a large payload, which ends the chunk.
func (b *Builder) Row(v [][]byte, id int64) bool {
	if at := b.layout.size; at >= 0 && v[at] != nil {
		b.chunk.large = newLarge(v, id)
		return false
	}
	return b.row(v, id)
}

func (b *Builder) row(v [][]byte, id int64) bool {
	l := b.layout
	e := event{id: id, idText: v[l.id]}
	if b.source.anyBytes && !b.isText(v) {
		first := len(b.chunk.slots)
		b.undecodable(&e, b.keep(v[l.payload]), errNotText)
		b.end(id, first)
		return true
	}
	if l.created >= 0 {
		e.created = parseTime(v[l.created])
	}
	if l.refresh >= 0 && v[l.refresh] != nil {
		e.refresh = len(b.chunk.text)
		b.chunk.text = append(b.chunk.text, v[l.refresh]...)
		e.refreshEnd = len(b.chunk.text)
	}
	if l.key >= 0 && v[l.key] != nil {
		e.key = len(b.chunk.text)
		b.chunk.text = append(b.chunk.text, v[l.key]...)
		e.keyEnd = len(b.chunk.text)
	}
	if l.eventID >= 0 {
		e.given = v[l.eventID]
	}
	first, firstMessage := len(b.chunk.slots), len(b.chunk.msgs)
	switch {
	case b.source.plain:
		b.plainRow(v, &e)
	case v[l.claim] != nil && v[l.claim][0] != 'f':
		if b.claimRow(v, &e) {
			return false
		}
	default:
		b.containerRow(v[l.payload], &e)
	}
	if l.headers >= 0 && v[l.headers] != nil {
		b.headers(b.chunk.msgs[firstMessage:], v[l.headers], &e)
	}
	b.end(id, first)
	return true
}

var errNotText = errors.New("it has bytes that are not UTF-8, and its database has no encoding")

// isText reports whether the columns of a row are UTF-8.
func (b *Builder) isText(v [][]byte) bool {
	l := b.layout
	for _, i := range []int{l.payload, l.refresh, l.op, l.key, l.headers, l.eventID} {
		if i >= 0 && l.types[i] == "bytea" && !utf8.Valid(v[i]) {
			return false
		}
	}
	return true
}

// end marks the last slot of a row, and adds one for a row without messages.
func (b *Builder) end(id int64, first int) {
	if len(b.chunk.slots) > first {
		b.chunk.slots[len(b.chunk.slots)-1].End = true
		return
	}
	b.chunk.slots = append(b.chunk.slots, Slot{ID: id, Index: -1, End: true, Settled: true})
}

// message adds one message, or only its slot if it was settled before.
func (b *Builder) message(e *event, op string, row, before []byte, full bool, err error) {
	index := e.index
	e.index++
	if len(b.settled) > 0 && b.settled.has(e.id, int64(index)) {
		b.chunk.slots = append(b.chunk.slots, Slot{ID: e.id, Index: int32(index), Settled: true})
		return
	}
	ch := &b.chunk
	c := cut{delivery: len(ch.text), key: e.key, keyEnd: e.keyEnd, refresh: e.refresh, refreshEnd: e.refreshEnd}
	ch.text, c.id = b.ids.append(ch.text, e, index)
	c.idEnd = len(ch.text)

	m := b.add(c, Slot{ID: e.id, Index: int32(index)})
	m.Op, m.Time, m.StreamTable, m.OutboxID = op, e.created, b.source.stream, e.id
	if err != nil {
		m.Err, m.Body, m.ContentType = err, row, "application/json"
		return
	}
	m.Row, m.Before, m.FullRefresh = row, before, full
}

// add adds a message with its cut and slot, for the caller to fill in place: a message is
// large.
func (b *Builder) add(c cut, s Slot) *relay.Message {
	ch := &b.chunk
	ch.cuts = append(ch.cuts, c)
	ch.slots = append(ch.slots, s)
	ch.bytes += relay.MessageOverhead
	if len(ch.msgs) == cap(ch.msgs) {
		b.grow(1)
	}
	ch.msgs = ch.msgs[:len(ch.msgs)+1]
	return &ch.msgs[len(ch.msgs)-1]
}

// snapshotEnd adds the marker of a snapshot whose messages are added, if the pipeline
// wants one.
func (b *Builder) snapshotEnd(e *event, full bool) {
	if b.source.marker {
		row := fmt.Appendf(nil, `{"outbox_id":%d,"messages":%d}`, e.id, e.index)
		b.message(e, relay.OpSnapshotEnd, b.keep(row), nil, full, nil)
	}
}

// undecodable adds a message for a row that the relay cannot decode. The engine
// dead-letters it, so that it is never dropped in silence.
func (b *Builder) undecodable(e *event, payload []byte, err error) {
	b.message(e, "", payload, nil, false, relay.Permanent(fmt.Errorf("row %d of %s: %w", e.id, b.source.qualified, err)))
}

func (b *Builder) plainRow(v [][]byte, e *event) {
	l := b.layout
	op := relay.OpInsert
	if l.op >= 0 && v[l.op] != nil {
		op = opOf(v[l.op])
	}
	payload := b.keep(v[l.payload])
	switch {
	case op == "":
		b.undecodable(e, payload, fmt.Errorf("operation %q is none of insert, update, delete", v[l.op]))
	case v[l.payload] == nil:
		b.undecodable(e, payload, errors.New("payload is null"))
	case b.source.raw && !jsonscan.Valid(payload):
		b.undecodable(e, payload, errors.New("payload is not JSON"))
	default:
		b.message(e, op, payload, nil, false, nil)
	}
}

// headers gives the messages of a row its headers. The messages share them, because
// no header is changed in place.
func (b *Builder) headers(msgs []relay.Message, object []byte, e *event) {
	var err error
	if b.inner, err = jsonscan.Members(b.inner[:0], object); err != nil {
		for i := range msgs {
			if m := &msgs[i]; !jsonscan.IsNull(object) && m.Err == nil {
				m.Err = relay.Permanent(fmt.Errorf("row %d of %s: headers: %w", e.id, b.source.qualified, err))
				m.Body, m.Row = m.Row, nil
			}
		}
		return
	}
	headers := make([]relay.Header, 0, len(b.inner))
	for _, h := range b.inner {
		headers = append(headers, relay.Header{
			Name:  string(jsonscan.AppendText(nil, h.Name)),
			Value: string(jsonscan.AppendText(nil, h.Value)),
		})
	}
	for i := range msgs {
		msgs[i].Headers = headers[:len(headers):len(headers)]
	}
}

func opOf(b []byte) string {
	switch string(b) {
	case "insert", "INSERT", "Insert", "I", "i", "c", "r", "create", "created", "CREATE":
		return relay.OpInsert
	case "update", "UPDATE", "Update", "U", "u", "updated":
		return relay.OpUpdate
	case "delete", "DELETE", "Delete", "D", "d", "deleted":
		return relay.OpDelete
	case "event", "EVENT":
		return relay.OpEvent
	}
	return ""
}

// containerRow adds the deltas of a row in the extension's or the relay's format.
func (b *Builder) containerRow(raw []byte, e *event) {
	if raw == nil || string(raw) == "null" {
		return // counts without rows
	}
	payload := b.keep(raw)
	if i := firstByte(payload); i == '[' {
		// The extension writes the whole stream table.
		var err error
		if b.list, err = jsonscan.Elements(b.list[:0], payload); err == nil {
			err = allObjects(b.list)
		}
		if err != nil {
			b.undecodable(e, payload, fmt.Errorf("payload: %w", err))
			return
		}
		b.grow(len(b.list))
		for _, row := range b.list {
			b.message(e, relay.OpInsert, row, nil, true, nil)
		}
		b.snapshotEnd(e, true)
		return
	}
	if err := b.versioned(payload, e); err != nil {
		b.undecodable(e, payload, err)
	}
}

// grow makes room for n more messages, so that a large row costs one allocation. The
// first call of a chunk makes room for as many as the chunk before had, because growing
// copies.
func (b *Builder) grow(n int) {
	if b.chunk.msgs == nil {
		n = max(n, min(b.last, maxReused))
		select {
		case b.chunk.msgs = <-b.spare:
		default:
		}
	}
	b.chunk.msgs = slices.Grow(b.chunk.msgs, n)
	b.chunk.slots = slices.Grow(b.chunk.slots, n)
	b.chunk.cuts = slices.Grow(b.chunk.cuts, n)
}

// versioned adds the deltas of {"v":1,…}. It checks all of them before it adds the
// first message, so that an error never leaves half a row behind.
func (b *Builder) versioned(payload []byte, e *event) error {
	if err := b.header(payload); err != nil {
		return err
	}
	full := string(b.vals[4]) == "true"
	if b.vals[1] == nil && b.vals[2] == nil && b.vals[3] == nil {
		return errors.New(`payload has none of "inserted", "updated" and "deleted"`)
	}
	inserted, err := b.elements(1)
	if err != nil {
		return err
	}
	updated, err := b.elements(2)
	if err != nil {
		return err
	}
	deleted, err := b.elements(3)
	if err != nil {
		return err
	}
	if err := b.splitUpdates(updated); err != nil {
		return err
	}
	if rid := b.vals[6]; e.refreshEnd == e.refresh && len(rid) > 2 && rid[0] == '"' {
		e.refresh = len(b.chunk.text)
		b.chunk.text = jsonscan.AppendText(b.chunk.text, rid)
		e.refreshEnd = len(b.chunk.text)
	}
	b.grow(len(inserted) + len(updated) + len(deleted))
	for _, row := range inserted {
		b.message(e, relay.OpInsert, row, nil, full, nil)
	}
	for _, u := range b.updates {
		b.message(e, relay.OpUpdate, u[0], u[1], full, nil)
	}
	for _, row := range deleted {
		b.message(e, relay.OpDelete, row, nil, false, nil)
	}
	return nil
}

// header splits a versioned payload into vals, and its arrays into lists.
func (b *Builder) header(payload []byte) error {
	if b.vals == nil {
		b.vals = make([][]byte, len(envelope))
		b.lists = make([][][]byte, len(envelope))
		for i := 1; i <= 3; i++ {
			b.lists[i] = make([][]byte, 0, 16)
		}
	}
	if err := jsonscan.Split(payload, envelope, b.vals, b.lists); err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	if v := b.vals[0]; string(v) != "1" {
		if v == nil {
			v = []byte("missing")
		}
		return fmt.Errorf("unsupported outbox payload version %s: this relay reads version 1", v)
	}
	return nil
}

// elements returns the rows of the array that is member i of envelope.
func (b *Builder) elements(i int) ([][]byte, error) {
	array, name := b.vals[i], envelope[i]
	if jsonscan.IsNull(array) {
		return nil, nil
	}
	if array[0] != '[' {
		return nil, fmt.Errorf("payload: %q: %w", name, jsonscan.ErrNotArray)
	}
	if err := allObjects(b.lists[i]); err != nil {
		return nil, fmt.Errorf("payload: %q: %w", name, err)
	}
	return b.lists[i], nil
}

var images = []string{"new", "old"}

// splitUpdates fills updates with the rows after and before each change.
func (b *Builder) splitUpdates(list [][]byte) error {
	b.updates = b.updates[:0]
	for _, u := range list {
		var row [2][]byte
		if err := jsonscan.Fields(u, images, row[:]); err != nil {
			return fmt.Errorf("payload: %q: %w", envelope[2], err)
		}
		if row[0] == nil {
			return errors.New(`payload: a member of "updated" has no "new"`)
		}
		if jsonscan.IsNull(row[1]) {
			row[1] = nil
		}
		b.updates = append(b.updates, row)
	}
	return nil
}

func allObjects(list [][]byte) error {
	for _, row := range list {
		if row[0] != '{' {
			return fmt.Errorf("a row is %.40s and not an object", row)
		}
	}
	return nil
}

func firstByte(b []byte) byte {
	for _, c := range b {
		if c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c
		}
	}
	return 0
}
