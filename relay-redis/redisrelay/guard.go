package redisrelay

import (
	"bytes"
	"net"
	"strconv"

	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// Bounds of a reply.
const (
	maxReply   = 512 << 20 // bytes; also the server's own bound of one value
	maxLine    = 64 << 10  // bytes of a line, such as an error
	maxNesting = 16        // lists in lists
	element    = 64        // bytes that the client takes for an element of a list
)

var peer = relaynet.Peer{Key: "redis_url", Name: "Redis server", TLS: "redis_tls"}

// newGuard returns conn with a bound for what the server may announce. go-redis
// allocates the length of a value or of a list before it reads it, and follows lists in
// lists as deep as they are. memory is [relay.Env.MaxAnswer].
func newGuard(conn net.Conn, memory int64) net.Conn {
	g := &guard{replies: replies{memory: memory}}
	g.Conn = relaynet.Guard(conn, peer, g.check)
	return g
}

type guard struct {
	net.Conn
	replies
}

// Write refuses to ask while the client has read only a part of a reply. It would take
// the rest, which was checked as a value, for the beginning of the next reply.
func (g *guard) Write(p []byte) (int, error) {
	if g.length > 0 || g.skip > 0 || len(g.open) > 0 {
		_ = g.Conn.Close()
		return 0, peer.Errorf("it sent a reply of another form than the command has")
	}
	return g.Conn.Write(p)
}

// replies goes through a server's replies, in the version 2 or 3 of its protocol.
type replies struct {
	line   []byte // beginning of the line that is being received
	length int    // of that line so far
	skip   int    // bytes of a value that follow
	open   []int  // elements that the lists around the next value still miss
	size   int    // bytes that the reply takes so far
	memory int64  // bytes that it may take; 0: only the protocol bounds them
}

// check is the check of a [relaynet.Guard].
func (r *replies) check(p []byte) error {
	for len(p) > 0 {
		if r.skip > 0 {
			n := min(r.skip, len(p))
			p, r.skip = p[n:], r.skip-n
			continue
		}
		if r.length == 0 && bytes.IndexByte([]byte("+-:_,#($=!*~>%"), p[0]) < 0 {
			return peer.Wrong(p)
		}
		n := bytes.IndexByte(p, '\n') + 1
		ends := n > 0
		if !ends {
			n = len(p)
		}
		r.line = append(r.line, p[:min(n, 24-len(r.line))]...) // a count has no more digits
		r.length += n
		p = p[n:]
		if r.length > maxLine {
			return peer.Errorf("it sent a line of more than %d KiB", maxLine>>10)
		}
		if ends {
			if err := r.header(); err != nil {
				return err
			}
			r.line, r.length = r.line[:0], 0
		}
	}
	return nil
}

// header takes a line, which is a value, or announces a value or a list.
func (r *replies) header() error {
	if err := r.take(r.length); err != nil {
		return err
	}
	kind := r.line[0]
	if (kind == '-' || kind == '!') && len(r.open) > 1 {
		return peer.Errorf("it sent an error inside of a value")
	}
	if bytes.IndexByte([]byte("$=!*~>%"), kind) < 0 {
		r.ended()
		return nil
	}
	n, err := strconv.Atoi(string(bytes.TrimSuffix(r.line[1:], []byte("\r\n"))))
	if err != nil || n < -1 || r.length > len(r.line) {
		return peer.Wrong(r.line)
	}
	n = min(n, maxReply) // no sum overflows
	switch kind {
	case '$', '=', '!':
		if n >= 0 {
			r.skip = n + len("\r\n")
		}
		if err := r.take(r.skip); err != nil {
			return err
		}
		r.ended()
		return nil
	case '%':
		n *= 2
	}
	if err := r.take(max(n, 0) * element); err != nil {
		return err
	}
	if n <= 0 {
		r.ended()
		return nil
	}
	if len(r.open) == maxNesting {
		return peer.Errorf("it sent lists in lists, %d deep", maxNesting)
	}
	r.open = append(r.open, n)
	return nil
}

// take counts bytes that the client will allocate for the reply.
func (r *replies) take(bytes int) error {
	r.size += bytes
	return peer.Bound("reply", int64(r.size), maxReply, r.memory)
}

// ended takes the end of a value, with which lists and the reply may end, too.
func (r *replies) ended() {
	for len(r.open) > 0 {
		last := len(r.open) - 1
		if r.open[last]--; r.open[last] > 0 {
			return
		}
		r.open = r.open[:last]
	}
	r.size = 0
}
