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
	maxCount   = 24        // bytes of a line with a count
	maxNesting = 16        // lists in lists
	element    = 64        // bytes that the client takes for an element of a list
)

var peer = relaynet.Peer{Key: "redis_url", Name: "Redis server", TLS: "redis_tls"}

// newGuard returns conn with a bound for what the server may announce. go-redis
// allocates the length of a value or of a list before it reads it, and follows lists in
// lists as deep as they are. memory is [relay.Env.MaxAnswer].
func newGuard(conn net.Conn, memory int64) net.Conn {
	r := newReplies(memory)
	return &guard{relaynet.Guard(conn, peer, r.Check), r}
}

type guard struct {
	net.Conn
	*replies
}

// Write refuses to ask while the client has read only a part of a reply. It would take
// the rest, which was checked as a value, for the beginning of the next reply.
func (g *guard) Write(p []byte) (int, error) {
	if !g.Between() || len(g.open) > 0 {
		_ = g.Conn.Close()
		return 0, peer.Errorf("it sent a reply of another form than the command has")
	}
	return g.Conn.Write(p)
}

// replies goes through a server's replies, in the version 2 or 3 of its protocol.
type replies struct {
	relaynet.Lines
	open   []int // elements that the lists around the next value still miss
	size   int   // bytes that the reply takes so far
	memory int64 // bytes that it may take; 0: only the protocol bounds them
}

func newReplies(memory int64) *replies {
	r := &replies{memory: memory}
	r.Lines = relaynet.Lines{Peer: peer, Max: maxLine, Take: r.header}
	return r
}

// header takes a line, which is a value, or announces a value or a list.
func (r *replies) header(line []byte, whole bool) (follow int, err error) {
	kind := line[0]
	if bytes.IndexByte([]byte("+-:_,#($=!*~>%"), kind) < 0 {
		return 0, peer.Wrong(line)
	}
	if !whole {
		return -1, nil
	}
	if err := r.take(len(line)); err != nil {
		return 0, err
	}
	if (kind == '-' || kind == '!') && len(r.open) > 1 {
		return 0, peer.Errorf("it sent an error inside of a value")
	}
	if bytes.IndexByte([]byte("$=!*~>%"), kind) < 0 {
		r.ended()
		return -1, nil
	}
	n, err := strconv.Atoi(string(bytes.TrimSuffix(line[1:], []byte("\r\n"))))
	if err != nil || n < -1 || len(line) > maxCount {
		return 0, peer.Wrong(line)
	}
	n = min(n, maxReply) // no sum overflows
	switch kind {
	case '$', '=', '!':
		err := r.take(n + len("\r\n"))
		r.ended()
		return n, err
	case '%':
		n *= 2
	}
	if err := r.take(max(n, 0) * element); err != nil {
		return 0, err
	}
	if n <= 0 {
		r.ended()
		return -1, nil
	}
	if len(r.open) == maxNesting {
		return 0, peer.Errorf("it sent lists in lists, %d deep", maxNesting)
	}
	r.open = append(r.open, n)
	return -1, nil
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
