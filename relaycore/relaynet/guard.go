package relaynet

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Peer describes what a client expects at an address, for errors.
type Peer struct {
	Key  string // configuration key of the address
	Name string // such as "Redis server"
	TLS  string // configuration key that asks for TLS
}

// WrongPeerError reports a server that is not what a client expects.
type WrongPeerError struct {
	Peer
	Text string // what is wrong with the answer
}

func (e *WrongPeerError) Error() string {
	return fmt.Sprintf("the server at %s is no %s: %s", e.Key, e.Name, e.Text)
}

// Wrong returns the error for a server whose answer, or a part of it that has the wrong
// form, begins with head.
func (p Peer) Wrong(head []byte) error {
	text := "it sent bytes that are no answer; check host and port"
	switch other := recognise(head); other {
	case "":
	case "TLS":
		text = "this looks like TLS; set " + p.TLS
	default:
		text = "this looks like " + other + "; check host and port"
	}
	return &WrongPeerError{Peer: p, Text: text}
}

// Explain returns the error of an HTTP client. It is fatal if the server is of another
// kind, or wants TLS.
func (p Peer) Explain(err error) error {
	if err != nil && strings.Contains(err.Error(), `malformed HTTP response "\x15\x03`) {
		err = p.Wrong([]byte("\x15\x03"))
	}
	if Refused(err) {
		return relay.Fatal(err)
	}
	return err
}

// TooLargeError reports that a server announced more than the process has memory for.
type TooLargeError struct {
	Peer
	What        string // what was announced, such as "message"
	Length, Max int64  // bytes
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the server at %s announced a %s of %d bytes, and the relay's memory allows %d: "+
		"give it more memory, or remove the message", e.Key, e.What, e.Length, e.Max)
}

// Bound refuses an announced length in bytes that is beyond what the protocol allows, or
// beyond memory, unless that is 0.
func (p Peer) Bound(what string, length, protocol, memory int64) error {
	switch {
	case length > protocol:
		return p.Errorf("it announced a %s of more than %d MiB", what, protocol>>20)
	case memory > 0 && length > memory:
		return &TooLargeError{Peer: p, What: what, Length: length, Max: memory}
	}
	return nil
}

// Refused reports whether a [Guard] refused what a server sent. It refuses it again.
func Refused(err error) bool {
	_, wrong := errors.AsType[*WrongPeerError](err)
	return wrong || IsTooLarge(err)
}

// IsTooLarge reports whether err is a [TooLargeError].
func IsTooLarge(err error) bool {
	_, large := errors.AsType[*TooLargeError](err)
	return large
}

// Errorf returns an error with a text of its own.
func (p Peer) Errorf(format string, args ...any) error {
	return &WrongPeerError{Peer: p, Text: fmt.Sprintf(format, args...)}
}

// Begins returns a check for [Guard] of a protocol in which the first byte of a server
// is one of these.
func (p Peer) Begins(bytes string) func([]byte) error {
	began := false
	return func(head []byte) error {
		if !began && strings.IndexByte(bytes, head[0]) < 0 {
			return p.Wrong(head)
		}
		began = true
		return nil
	}
}

// HTTP is the Wrap of a [Dialer] for HTTP. It refuses a server that speaks neither HTTP nor
// TLS. net/http bounds the header of an answer, and the client bounds its body.
func (p Peer) HTTP(conn net.Conn) net.Conn { return Guard(conn, p, p.Begins("H\x15\x16")) }

// recognise names the kind of server whose answer begins with head, or returns "".
func recognise(head []byte) string {
	for _, known := range []struct{ prefix, name string }{
		{"HTTP", "an HTTP server"},
		{"INFO", "a NATS server"},
		{"AMQP", "an AMQP server"},
		{"SSH-", "an SSH server"},
		{"\x15\x03", "TLS"},
		{"\x16\x03", "TLS"},
		{"E\x00\x00", "PostgreSQL"},
		{"-", "Redis"},
		{"+", "Redis"},
		{"\x01\x00\x00\x00\x00", "an AMQP server"},
	} {
		if bytes.HasPrefix(head, []byte(known.prefix)) {
			return known.name
		}
	}
	if len(head) == 1 && (head[0] == 'N' || head[0] == 'S') {
		return "PostgreSQL" // it refuses or accepts TLS
	}
	return ""
}

// Guard returns a connection that shows every byte of the peer to check before the
// client reads it. An error of check is the error of this and each later Read; the
// client gets none of the bytes that check saw with it.
//
// Client libraries allocate what a length in an answer announces. With check, a backend
// bounds such lengths. It is called by one Read at a time, and must not keep p.
func Guard(conn net.Conn, peer Peer, check func(p []byte) error) *Guarded {
	return &Guarded{Conn: conn, peer: peer, check: check}
}

// hangUpError is an io.EOF with a text. It wraps nothing, because go-redis unwraps the
// errors of a new connection.
type hangUpError string

func (e hangUpError) Error() string        { return string(e) }
func (e hangUpError) Is(target error) bool { return target == io.EOF }

// Guarded is a connection of [Guard].
type Guarded struct {
	net.Conn
	peer     Peer
	check    func([]byte) error
	answered bool // the peer has sent something

	mu  sync.Mutex // guards err, which a Write reads
	err error      // of check
}

// Err returns the error of check, or nil. A client may have kept only its text. A nil
// Guarded, of a dial that failed, has none.
func (g *Guarded) Err() error {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// Write implements net.Conn. The client may close the connection for the error of a Read
// while it writes; then this is also the error of the Write.
func (g *Guarded) Write(p []byte) (int, error) {
	n, err := g.Conn.Write(p)
	if err != nil {
		err = cmp.Or(g.Err(), err)
	}
	return n, err
}

// Read implements net.Conn.
func (g *Guarded) Read(p []byte) (int, error) {
	if err := g.Err(); err != nil {
		return 0, err
	}
	n, err := g.Conn.Read(p)
	if n > 0 {
		g.answered = true
		if err := g.check(p[:n]); err != nil {
			g.mu.Lock()
			g.err = err
			g.mu.Unlock()
			return 0, err
		}
	}
	if errors.Is(err, io.EOF) && !g.answered {
		err = hangUpError("EOF: the server closed the connection without an answer; check host, port and " + g.peer.TLS)
	}
	return n, err
}
