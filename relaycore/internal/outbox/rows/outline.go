package rows

import (
	"slices"
	"unicode/utf8"

	"github.com/grove/pgtrickle-relay/relaycore/internal/jsonscan"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// maxMember bounds the members that an [Outline] keeps, in bytes. A column of a primary key
// has at most 2,704.
const maxMember = 4096

// Outline finds the only event of a payload that is written to it in parts, without holding
// it. It relies on the payload being JSON.
type Outline struct {
	plain bool // the payload is the event

	base   int64 // bytes that were written
	tail   []byte
	stack  []open
	quoted bool  // within a string
	escape bool  // behind a backslash
	start  int64 // of the string or literal; -1 = none has begun

	version  string
	full     bool
	refresh  string
	op       string
	from, to int64
	events   int
	elements int  // of the lists of events
	before   bool // the event has a row before
	members  []byte
}

// open is an array or object that has not ended.
type open struct {
	start int64
	array bool
	key   string // of the member in hand, quoted
	named bool   // the key has ended
}

// NewOutline returns an outline of a payload that is an event if plain, else a container.
func NewOutline(plain bool) *Outline { return &Outline{plain: plain, start: -1} }

// Event returns what is known of the only event, and where it is: bytes from to to. ok is
// false if there is another number of events, the version is unknown, or if the event is an
// update with the row before.
func (o *Outline) Event() (e Event, from, to int64, ok bool) {
	e = Event{Op: o.op, Full: o.full, RefreshID: o.refresh}
	sole := o.events == 1 && (o.plain || o.elements == 1)
	if o.members != nil && sole {
		if e.Members = append(slices.Clone(o.members), '}'); !jsonscan.Valid(e.Members) || !utf8.Valid(e.Members) {
			e.Members = nil // it is no JSON
		}
	}
	ok = sole && !o.before && e.Members != nil && (o.plain || o.version == "1")
	if !sole {
		e.Op = ""
	}
	return e, o.from, o.to, ok
}

// Write implements [io.Writer].
func (o *Outline) Write(p []byte) (int, error) {
	for i := 0; i < len(p); i++ {
		if o.quoted && !o.escape {
			for i < len(p)-1 && p[i] != '"' && p[i] != '\\' { // most of a large row
				i++
			}
		}
		c, at := p[i], o.base+int64(i)
		switch {
		case o.escape:
			o.escape = false
		case o.quoted:
			switch c {
			case '\\':
				o.escape = true
			case '"':
				o.quoted = false
				o.scalar(at+1, p)
			}
		case c == '"':
			o.quoted, o.start = true, at
		case c == '{', c == '[':
			o.stack = append(o.stack, open{start: at, array: c == '['})
		case c == '}', c == ']', c == ',', c == ':', c <= ' ':
			if o.start >= 0 {
				o.scalar(at, p)
			}
			o.punctuation(c, at, p)
		case o.start < 0:
			o.start = at
		}
	}
	if o.base += int64(len(p)); len(p) >= maxMember {
		o.tail = append(o.tail[:0], p[len(p)-maxMember:]...)
	} else {
		o.tail = append(o.tail, p...)
		o.tail = o.tail[max(0, len(o.tail)-maxMember):]
	}
	return len(p), nil
}

func (o *Outline) punctuation(c byte, at int64, p []byte) {
	n := len(o.stack)
	switch {
	case n == 0:
	case c == ':':
		o.stack[n-1].named = true
	case c == ',':
		o.stack[n-1].named = false
	case c == '}', c == ']':
		start := o.stack[n-1].start
		o.stack = o.stack[:n-1]
		o.value(start, at+1, p)
	}
}

// scalar ends a string or a literal.
func (o *Outline) scalar(end int64, p []byte) {
	start := o.start
	o.start = -1
	if n := len(o.stack); n > 0 && !o.stack[n-1].array && !o.stack[n-1].named {
		o.stack[n-1].key = string(o.text(start, end, p))
		return
	}
	o.value(start, end, p)
}

// text returns the bytes from start to end, nil if they are too many.
func (o *Outline) text(start, end int64, p []byte) []byte {
	switch {
	case end-start > maxMember:
		return nil
	case start >= o.base:
		return p[start-o.base : end-o.base]
	}
	old := o.tail[len(o.tail)-int(o.base-start):]
	return append(slices.Clip(old), p[:end-o.base]...)
}

// value looks at a value that has ended.
func (o *Outline) value(start, end int64, p []byte) {
	depth := len(o.stack)
	list := "" // of a container's, that the value is in
	if !o.plain && depth > 1 && o.stack[1].array {
		list = o.stack[0].key
	}
	if depth == 2 && (list == `"inserted"` || list == `"updated"` || list == `"deleted"`) {
		o.elements++
	}
	event := 0 // depth of the event
	switch {
	case o.plain:
	case list == `"inserted"`, list == `"deleted"`:
		event = 2
	case list == `"updated"`:
		if depth == 2 {
			return
		}
		if event = 3; o.stack[2].key == `"old"` {
			o.before = o.before || depth == 3 && string(o.text(start, end, p)) != "null"
			return
		}
		if o.stack[2].key != `"new"` {
			return
		}
	default:
		if depth == 1 {
			o.header(string(o.text(start, end, p)))
		}
		return
	}
	switch {
	case depth == event:
		o.events++
		o.from, o.to = start, end
		o.op = map[string]string{`"inserted"`: relay.OpInsert, `"updated"`: relay.OpUpdate, `"deleted"`: relay.OpDelete}[list]
		if o.members == nil && end > o.base && p[end-1-o.base] == '}' {
			o.members = []byte{'{'}
		}
	case depth == event+1 && o.elements == 0 && o.events == 0 && !o.stack[event].array:
		o.member(o.stack[event].key, o.text(start, end, p))
	}
}

// header takes a member of the container.
func (o *Outline) header(text string) {
	switch o.stack[0].key {
	case `"v"`:
		o.version = text
	case `"full_refresh"`:
		o.full = text == "true"
	case `"refresh_id"`:
		if len(text) > 2 && text[0] == '"' {
			o.refresh = string(jsonscan.AppendText(nil, []byte(text)))
		}
	}
}

func (o *Outline) member(key string, text []byte) {
	if key == "" || text == nil {
		return
	}
	if o.members == nil {
		o.members = []byte{'{'}
	} else {
		o.members = append(o.members, ',')
	}
	o.members = append(append(append(o.members, key...), ':'), text...)
}
