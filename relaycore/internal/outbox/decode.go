package outbox

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/jsonscan"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// builder turns rows into one chunk of messages. What it allocates belongs to
// the chunk, and is a few large pieces; what it only works with is reused.
type builder struct {
	table  string // as message ids spell it
	stream string
	layout *layout
	plain  bool
	raw    bool // the payload may be something else than JSON
	source string

	msgs  []relay.Message
	slots []slot
	bytes int

	arena   []byte
	text    []byte // ids, keys and refresh ids, to become one string
	cuts    []cut
	list    [][]byte
	inner   []jsonscan.Member
	vals    [][]byte             // of envelope's members
	lists   [][][]byte           // and the elements of those that are arrays
	updates [][2][]byte          // rows after and before
	skip    map[int64][][2]int64 // settled before: row -> runs of messages

	claim *claimed             // the row that ended the chunk
	last  int                  // messages of the chunk before
	spare chan []relay.Message // empty slices to be filled again
}

// perMessage is about what a message takes beside its row: the struct, its slot
// and its cut.
const perMessage = 450

// cut says where in text the strings of a message are.
type cut struct{ id, idEnd, key, keyEnd, refresh, refreshEnd int }

// claimed is a row whose deltas are in another table.
type claimed struct {
	id      int64
	created time.Time
	refresh string
	full    bool
	next    int64 // row_num behind which to go on
	index   int   // of the next message
	begun   bool
}

var envelope = []string{"v", "inserted", "updated", "deleted", "full_refresh", "claim_check", "refresh_id"} //nolint:gochecknoglobals // a constant

// reset begins a chunk.
func (b *builder) reset() {
	b.msgs, b.slots, b.bytes, b.claim = nil, b.slots[:0], 0, nil
	b.text, b.cuts = b.text[:0], b.cuts[:0]
	b.arena = nil
}

// keep copies p into the chunk's memory.
func (b *builder) keep(p []byte) []byte {
	b.bytes += len(p)
	if cap(b.arena)-len(b.arena) < len(p) {
		b.arena = make([]byte, 0, max(len(p), min(max(2*cap(b.arena), 16<<10), 512<<10)))
	}
	n := len(b.arena)
	b.arena = append(b.arena, p...)
	return b.arena[n:len(b.arena):len(b.arena)]
}

// finish makes the strings and returns the chunk's messages and slots.
func (b *builder) finish() ([]relay.Message, []slot) {
	text := string(b.text)
	slots := slices.Clone(b.slots)
	b.last = len(b.msgs)
	i := 0
	for s := range slots {
		if slots[s].settled {
			continue
		}
		m, c := &b.msgs[i], &b.cuts[i]
		m.ID = text[c.id:c.idEnd]
		m.Key = text[c.key:c.keyEnd]
		if c.refreshEnd > c.refresh {
			m.RefreshID = text[c.refresh:c.refreshEnd]
		}
		m.Token = &slots[s]
		i++
	}
	return b.msgs, slots
}

// event is what is common to the messages of a row.
type event struct {
	id                  int64
	idText              []byte
	created             time.Time
	refresh, refreshEnd int // in text
	key, keyEnd         int
	index               int
}

// row adds the messages of one row. It returns false when the row is a claim
// check, which ends the chunk.
func (b *builder) row(v [][]byte, id int64) bool {
	l := b.layout
	e := event{id: id, idText: v[l.id]}
	if l.created >= 0 {
		e.created = parseTime(v[l.created])
	}
	if l.refresh >= 0 && v[l.refresh] != nil {
		e.refresh = len(b.text)
		b.text = append(b.text, v[l.refresh]...)
		e.refreshEnd = len(b.text)
	}
	first := len(b.slots)
	switch {
	case b.plain:
		b.plainRow(v, &e)
	case v[l.claim] != nil && v[l.claim][0] == 't':
		if b.claimRow(v, &e) {
			return false
		}
	default:
		b.containerRow(v[l.payload], &e)
	}
	b.end(id, first)
	return true
}

// end marks the last slot of a row, and makes one for a row without messages.
func (b *builder) end(id int64, first int) {
	if len(b.slots) > first {
		b.slots[len(b.slots)-1].end = true
		return
	}
	b.slots = append(b.slots, slot{id: id, index: -1, end: true, settled: true})
}

// message adds one message, or only its slot when it was settled before.
func (b *builder) message(e *event, op string, row, before []byte, full bool, err error) {
	index := e.index
	e.index++
	if len(b.skip) > 0 && b.settledBefore(e.id, int64(index)) {
		b.slots = append(b.slots, slot{id: e.id, index: int32(index), settled: true})
		return
	}
	c := cut{id: len(b.text), key: e.key, keyEnd: e.keyEnd, refresh: e.refresh, refreshEnd: e.refreshEnd}
	b.text = append(b.text, b.table...)
	b.text = append(b.text, ':')
	b.text = append(b.text, e.idText...)
	b.text = append(b.text, ':')
	b.text = strconv.AppendInt(b.text, int64(index), 10)
	c.idEnd = len(b.text)
	b.cuts = append(b.cuts, c)
	b.slots = append(b.slots, slot{id: e.id, index: int32(index)})
	b.bytes += perMessage // small rows weigh less than what is made of them
	if len(b.msgs) == cap(b.msgs) {
		b.grow(1)
	}
	b.msgs = b.msgs[:len(b.msgs)+1] // a message is large: it is filled where it lies
	m := &b.msgs[len(b.msgs)-1]
	m.Op, m.Time, m.StreamTable, m.OutboxID = op, e.created, b.stream, e.id
	if err != nil {
		m.Err, m.Body, m.ContentType = err, row, "application/json"
		return
	}
	m.Row, m.Before, m.FullRefresh = row, before, full
}

func (b *builder) settledBefore(id, index int64) bool {
	for _, run := range b.skip[id] {
		if run[0] <= index && index < run[1] {
			return true
		}
	}
	return false
}

// undecodable makes a message of a row that nobody understands, so that it is
// kept as a dead letter and never passed over in silence.
func (b *builder) undecodable(e *event, payload []byte, err error) {
	b.message(e, "", payload, nil, false, relay.Permanent(fmt.Errorf("row %d of %s: %w", e.id, b.source, err)))
}

func (b *builder) plainRow(v [][]byte, e *event) {
	l := b.layout
	op := relay.OpInsert
	if l.op >= 0 && v[l.op] != nil {
		op = opOf(v[l.op])
	}
	if l.key >= 0 && v[l.key] != nil {
		e.key = len(b.text)
		b.text = append(b.text, v[l.key]...)
		e.keyEnd = len(b.text)
	}
	payload := b.keep(v[l.payload])
	n := len(b.msgs)
	switch {
	case op == "":
		b.undecodable(e, payload, fmt.Errorf("operation %q is none of insert, update, delete", v[l.op]))
	case v[l.payload] == nil:
		b.undecodable(e, payload, errors.New("payload is null"))
	case b.raw && !jsonscan.Valid(payload):
		b.undecodable(e, payload, errors.New("payload is not JSON"))
	default:
		b.message(e, op, payload, nil, false, nil)
	}
	if l.headers >= 0 && v[l.headers] != nil && len(b.msgs) > n {
		b.headers(&b.msgs[n], v[l.headers], e)
	}
}

func (b *builder) headers(m *relay.Message, object []byte, e *event) {
	var err error
	if b.inner, err = jsonscan.Members(b.inner[:0], object); err != nil {
		if !jsonscan.IsNull(object) && m.Err == nil {
			m.Err = relay.Permanent(fmt.Errorf("row %d of %s: headers: %w", e.id, b.source, err))
			m.Body, m.Row = m.Row, nil
		}
		return
	}
	for _, h := range b.inner {
		m.Headers = append(m.Headers, relay.Header{Name: string(jsonscan.AppendText(nil, h.Name)), Value: string(jsonscan.AppendText(nil, h.Value))})
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

// containerRow adds the deltas of a row of the extension's or our own format.
func (b *builder) containerRow(raw []byte, e *event) {
	if raw == nil || string(raw) == "null" {
		return // counts without rows: nothing to deliver
	}
	payload := b.keep(raw)
	if i := firstByte(payload); i == '[' {
		// What the extension really writes: the whole stream table.
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
		return
	}
	if err := b.versioned(payload, e); err != nil {
		b.undecodable(e, payload, err)
	}
}

// grow makes room for n messages more, so that a large row costs one allocation;
// at first for as many as the chunk before had, as growing copies.
func (b *builder) grow(n int) {
	if b.msgs == nil {
		n = max(n, min(b.last, mostRows))
		select {
		case b.msgs = <-b.spare:
		default:
		}
	}
	b.msgs = slices.Grow(b.msgs, n)
	b.slots = slices.Grow(b.slots, n)
	b.cuts = slices.Grow(b.cuts, n)
}

// versioned adds the deltas of {"v":1,…}. It checks everything before it adds the
// first message, so that an error never leaves half a row behind.
func (b *builder) versioned(payload []byte, e *event) error {
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
		e.refresh = len(b.text)
		b.text = jsonscan.AppendText(b.text, rid)
		e.refreshEnd = len(b.text)
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

// header reads the members of a versioned payload into vals, and the elements of
// its arrays into lists.
func (b *builder) header(payload []byte) error {
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

// elements returns the rows of one of the envelope's arrays.
func (b *builder) elements(i int) ([][]byte, error) {
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

var images = []string{"new", "old"} //nolint:gochecknoglobals // a constant

// splitUpdates fills updates with the row after and before each change.
func (b *builder) splitUpdates(list [][]byte) error {
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

// claimRow remembers a row whose deltas are elsewhere. It returns false when the
// row turned out to be undecodable, and so became a message.
func (b *builder) claimRow(v [][]byte, e *event) bool {
	c := &claimed{id: e.id, created: e.created, next: -1 << 63}
	raw := v[b.layout.payload]
	if raw == nil || string(raw) == "null" {
		c.full = true // the extension copies the whole stream table
	} else {
		if err := b.header(raw); err != nil {
			b.undecodable(e, b.keep(raw), err)
			return false
		}
		c.full = string(b.vals[4]) == "true"
		if rid := b.vals[6]; len(rid) > 2 && rid[0] == '"' {
			c.refresh = string(jsonscan.AppendText(nil, rid))
		}
	}
	if e.refreshEnd > e.refresh {
		c.refresh = string(b.text[e.refresh:e.refreshEnd])
	}
	b.claim = c
	return true
}
