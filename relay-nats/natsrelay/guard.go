package natsrelay

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// Bounds of what a server may send.
const (
	maxLine    = 256 << 10 // bytes of a line; INFO lists all servers of a cluster
	maxPayload = 64 << 20  // bytes of a message; no server allows more
)

var peer = relaynet.Peer{Key: "nats_url", Name: "NATS server", TLS: "nats_tls_ca"}

// dialer is the client's dialer. It does the TLS handshake, so that the guard lies
// above TLS. A server sends its INFO in the clear before it expects the handshake.
type dialer struct {
	relaynet.Dialer
	tls     *tls.Config // nil: only if the server demands it
	wanted  bool        // TLS is demanded by the configuration
	memory  int64       // relay.Env.MaxAnswer
	refused func(error) // gets the error for a message that is too large; may be nil
}

// option returns the client's option for the dialer. The client itself does the TLS
// handshake of a WebSocket, which has no guard.
func (d *dialer) option(servers []*url.URL) nats.Option {
	webSocket := func(u *url.URL) bool { return u.Scheme == "ws" || u.Scheme == "wss" }
	if slices.ContainsFunc(servers, webSocket) {
		return func(o *nats.Options) error {
			o.CustomDialer, o.Secure, o.TLSConfig = &d.Dialer, d.wanted, d.tls
			return nil
		}
	}
	d.wanted = d.wanted || slices.ContainsFunc(servers, func(u *url.URL) bool { return u.Scheme == "tls" })
	return nats.SetCustomDialer(d)
}

// SkipTLSHandshake reports to the client that the dialer does it.
func (d *dialer) SkipTLSHandshake() bool { return true }

// Dial implements nats.CustomDialer.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	conn, err := d.Dialer.Dial(network, address)
	if err != nil {
		return nil, err
	}
	guarded, err := d.greet(conn, address)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return guarded, nil
}

// greet reads the server's INFO, does the handshake if one side wants it, and returns a
// connection on which the client finds INFO again.
func (d *dialer) greet(conn net.Conn, address string) (net.Conn, error) {
	if err := conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return nil, err
	}
	plain := d.guard(conn)
	var info []byte
	for !bytes.HasSuffix(info, []byte("\n")) {
		if len(info) == cap(info) {
			info = slices.Grow(info, 4<<10)
		}
		n, err := plain.Read(info[len(info):cap(info)])
		if info = info[:len(info)+n]; err != nil {
			return nil, cmp.Or(ask(conn, plain, err), err)
		}
	}
	var server struct {
		Required  bool `json:"tls_required"`
		Available bool `json:"tls_available"`
	}
	line, isInfo := bytes.CutPrefix(info, []byte("INFO "))
	if !isInfo || json.Unmarshal(line, &server) != nil {
		return nil, peer.Wrong(info)
	}

	made := plain
	switch {
	case d.wanted && !server.Required && !server.Available:
		return nil, nats.ErrSecureConnWanted
	case d.wanted || server.Required:
		config := cmp.Or(d.tls, &tls.Config{MinVersion: tls.VersionTLS12})
		secure, err := relaynet.Secure(context.Background(), conn, config, address) // the deadline bounds it
		if err != nil {
			return nil, fmt.Errorf("%w: %w", nats.ErrTLS, err)
		}
		made = d.guard(secure)
	}
	return &replayed{Conn: made, first: info}, conn.SetDeadline(time.Time{})
}

// ask finds out what the server is if it has sent nothing in time: a server of another
// kind waits for the client. It returns nil if err is not a timeout.
func ask(conn, guarded net.Conn, err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if conn.SetDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = guarded.Write([]byte("PING\r\n\r\n"))
		head := make([]byte, 64)
		n, answer := guarded.Read(head)
		if n > 0 {
			return peer.Wrong(head[:n])
		}
		if _, wrong := errors.AsType[*relaynet.WrongPeerError](answer); wrong {
			return answer
		}
	}
	return fmt.Errorf("the server sent no INFO; check host, port and tls:// of nats_url: %w", err)
}

// replayed is a connection on which bytes come first that were read before.
type replayed struct {
	net.Conn
	first []byte
}

// Read implements net.Conn.
func (r *replayed) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

// guard returns conn with a bound for what the server may send. The client collects
// a line for as long as it has no end, and allocates the length of a message that a
// line announces.
func (d *dialer) guard(conn net.Conn) net.Conn {
	lines := d.lines()
	return relaynet.Guard(conn, peer, func(p []byte) error {
		err := lines.Check(p)
		if relaynet.IsTooLarge(err) && d.refused != nil { // else another server of the list may do
			d.refused(err)
		}
		return err
	})
}

func (d *dialer) lines() *relaynet.Lines {
	return &relaynet.Lines{Peer: peer, Max: maxLine, Take: d.operation}
}

var verbs = []string{"MSG ", "HMSG ", "INFO ", "PING", "PONG", "+OK", "-ERR "}

// operation checks a line, or the beginning of one, and returns the length of the message
// that it announces. It demands more than the client does: no line break but CR LF, and no
// other control character.
func (d *dialer) operation(line []byte, whole bool) (follow int, err error) {
	begins := func(verb string) bool {
		n := min(len(verb), len(line))
		return string(line[:n]) == verb[:n]
	}
	if !slices.ContainsFunc(verbs, begins) {
		return 0, peer.Wrong(line)
	}
	if !whole {
		return -1, nil
	}
	text, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok || bytes.ContainsFunc(text, func(r rune) bool { return r < ' ' }) {
		return 0, peer.Wrong(line)
	}
	if text[0] != 'M' && text[0] != 'H' {
		return -1, nil
	}
	n, err := strconv.Atoi(string(text[bytes.LastIndexByte(text, ' ')+1:]))
	if err != nil || n < 0 {
		return 0, peer.Wrong(line)
	}
	return n, peer.Bound("message", int64(n), maxPayload, d.memory)
}
