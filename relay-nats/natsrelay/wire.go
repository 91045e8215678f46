package natsrelay

import (
	"net/textproto"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// encoder turns messages into the client's, one at a time. It uses one message and one
// header map again. Messages usually have headers of the same names, and then it only
// replaces the values.
type encoder struct {
	msg   nats.Msg
	wire  []relay.Header
	names []string // of the headers in msg.Header, nil where it must be rebuilt
	vals  []string // msg.Header's slices point into it

	badValue string // name of a header of msg whose value the client would change
}

// headerLine begins and ends a block of headers: "NATS/1.0\r\n" and "\r\n".
const headerLine = 12

// encode returns m for the client, and the bytes that count against the server's limits.
// Demanding is whether m has a header for which the server may refuse it alone.
func (e *encoder) encode(m *relay.Message, reply string) (msg *nats.Msg, size int, demanding bool) {
	e.badValue = ""
	e.wire = append(e.wire[:0], relay.Header{Name: nats.MsgIdHdr, Value: m.Delivery()})
	if m.Delivery() != m.ID {
		e.wire = append(e.wire, relay.Header{Name: relay.HeaderDedupKey, Value: m.ID})
	}
	e.wire = m.WireHeaders(e.wire)
	if len(m.Headers) > 0 {
		demanding = e.inspect(len(e.wire) - len(m.Headers))
	}
	size = headerLine + len(m.Body)
	same := len(e.names) == len(e.wire)
	for i := range e.wire {
		size += len(e.wire[i].Name) + len(e.wire[i].Value) + len(": \r\n")
		same = same && e.names[i] == e.wire[i].Name
	}
	if same {
		for i := range e.wire {
			e.vals[i] = e.wire[i].Value
		}
	} else {
		e.rebuild()
	}
	e.msg.Subject, e.msg.Reply, e.msg.Data = m.Subject, reply, m.Body
	return &e.msg, size, demanding
}

// inspect looks at the user's own headers, which begin at first. It drops a Nats-Msg-Id:
// the message's id replaces it. It reports whether another header is for the server, and
// sets badValue. The client makes spaces of line breaks, and removes spaces at the ends.
func (e *encoder) inspect(first int) (demanding bool) {
	own := slices.DeleteFunc(e.wire[first:], func(h relay.Header) bool { return strings.EqualFold(h.Name, nats.MsgIdHdr) })
	e.wire = e.wire[:first+len(own)]
	for _, h := range own {
		demanding = demanding || len(h.Name) > 5 && strings.EqualFold(h.Name[:5], "Nats-")
		if strings.ContainsAny(h.Value, "\r\n") || textproto.TrimString(h.Value) != h.Value {
			e.badValue = strings.Clone(h.Name)
		}
	}
	return demanding
}

func (e *encoder) rebuild() {
	e.msg.Header = make(nats.Header, len(e.wire))
	e.names, e.vals = e.names[:0], make([]string, len(e.wire))
	repeated := false
	for i, h := range e.wire {
		name := strings.Clone(h.Name) // the caller's bytes are reused
		e.names = append(e.names, name)
		e.vals[i] = h.Value
		if prior, ok := e.msg.Header[name]; ok {
			e.msg.Header[name], repeated = append(slices.Clip(prior), h.Value), true
			continue
		}
		e.msg.Header[name] = e.vals[i : i+1 : i+1]
	}
	if repeated {
		e.names = nil
	}
}

// wildcards returns the pattern of the subjects that a template renders. A token with a
// variable may render as several tokens. So ">" ends the pattern when one of them is
// last, and "*" stands for it elsewhere.
func wildcards(template relay.Template) string {
	tokens := strings.Split(template.Pattern("\x00", ""), ".")
	for i, t := range tokens {
		switch {
		case !strings.Contains(t, "\x00"):
		case i == len(tokens)-1:
			tokens[i] = ">"
		default:
			tokens[i] = "*"
		}
	}
	return strings.Join(tokens, ".")
}

// validSubject reports whether a message can be published to subject.
func validSubject(subject string) bool {
	for token := range strings.SplitSeq(subject, ".") {
		if token == "" || token == "*" || token == ">" || strings.ContainsAny(token, " \t\r\n\f\x00") {
			return false
		}
	}
	return true
}

// overlap reports whether a subject exists that both patterns cover. A subject is a
// pattern without wildcards, which covers itself.
func overlap(a, b string) bool {
	for {
		at, arest, amore := strings.Cut(a, ".")
		bt, brest, bmore := strings.Cut(b, ".")
		switch {
		case at == ">" || bt == ">":
			return true
		case at != bt && at != "*" && bt != "*":
			return false
		case !amore || !bmore:
			return amore == bmore
		}
		a, b = arest, brest
	}
}
