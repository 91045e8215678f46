package rabbitmqrelay

import (
	"encoding/binary"
	"math"
	"net"

	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// Bounds of what a broker may send.
const (
	maxFrame = 128 << 10 // bytes of a frame; the client asks for no more
	maxBody  = 512 << 20 // bytes of a message; no broker allows more
)

var peer = relaynet.Peer{Key: "rabbitmq_url", Name: "AMQP 0-9-1 server", TLS: "rabbitmq_tls"}

// newGuard returns conn with a bound for what the broker may announce. The client
// bounds frames. But it collects a message of any length. It reads the strings of a
// method, of up to 2 GiB, beyond the end of their frame.
// memory is [relay.Env.MaxAnswer].
func newGuard(conn net.Conn, memory int64) *relaynet.Guarded {
	return relaynet.Guard(conn, peer, (&frames{memory: memory}).check)
}

const frameHeader = 7 // type, channel, size

// Types of frames.
const (
	methodFrame    = 1
	headerFrame    = 2
	bodyFrame      = 3
	heartbeatFrame = 8
)

// frames goes through a broker's frames.
type frames struct {
	memory int64  // bytes that a message may have; 0: only the protocol bounds them
	head   []byte // header of the current frame, and the beginning of its payload
	rest   int    // bytes of the payload that follow, and its end
}

// check is the check of a [relaynet.Guard].
func (f *frames) check(p []byte) error {
	for len(p) > 0 {
		want := frameHeader
		if len(f.head) >= frameHeader {
			want = f.held()
		}
		if n := min(want-len(f.head), len(p)); n > 0 {
			f.head = append(f.head, p[:n]...)
			p = p[n:]
			if err := f.inspect(); err != nil {
				return err
			}
			continue
		}
		n := min(f.rest, len(p))
		p, f.rest = p[n:], f.rest-n
		if f.rest == 0 {
			f.head = f.head[:0]
		}
	}
	return nil
}

func (f *frames) size() int { return int(binary.BigEndian.Uint32(f.head[3:])) }

// held returns how many bytes of the frame are looked at: all of a method, and of a
// header the length of the message.
func (f *frames) held() int {
	switch f.head[0] {
	case methodFrame:
		return frameHeader + f.size()
	case headerFrame:
		return frameHeader + 12
	}
	return frameHeader
}

// inspect checks what is known of the frame.
func (f *frames) inspect() error {
	if kind := f.head[0]; kind < methodFrame || kind > bodyFrame && kind != heartbeatFrame {
		return peer.Wrong(f.head)
	}
	if len(f.head) < frameHeader {
		return nil
	}
	size := f.size()
	if size > maxFrame || f.head[0] == headerFrame && size < 12 {
		return peer.Errorf("it announced a frame of %d bytes; check host and port", size)
	}
	f.rest = frameHeader + size + 1 - f.held()
	payload := f.head[frameHeader:]
	switch {
	case f.head[0] == headerFrame && len(payload) == 12:
		n := min(binary.BigEndian.Uint64(payload[4:]), math.MaxInt64)
		return peer.Bound("message", int64(n), maxBody, f.memory)
	case f.head[0] == methodFrame:
		return f.method(payload, size)
	}
	return nil
}

// method checks the long strings in the methods of a broker that have any. payload is
// the beginning of size bytes.
func (f *frames) method(payload []byte, size int) error {
	if size < 4 {
		return peer.Errorf("it announced a method of %d bytes", size)
	}
	if len(payload) < 4 {
		return nil
	}
	at, strings := 4, 0
	switch binary.BigEndian.Uint32(payload) {
	case 10<<16 | 10: // connection.start: two numbers, server properties, mechanisms, locales
		at, strings = 6, 3
	case 10<<16 | 20, 20<<16 | 11: // connection.secure, channel.open-ok
		strings = 1
	}
	for ; strings > 0 && len(payload) >= at+4; strings-- {
		n := int(binary.BigEndian.Uint32(payload[at:]))
		if at += 4 + n; at > size {
			return peer.Errorf("it announced %d bytes in a frame of %d", n, size)
		}
	}
	return nil
}
