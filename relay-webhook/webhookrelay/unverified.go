package webhookrelay

import (
	"cmp"
	"container/list"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"
)

const (
	// firstRead is how many bytes of a body there is room for before any has come.
	firstRead = 4 << 10
	partSize  = 64 << 10 // of all further ones but the last
	// Something must arrive every stallTime, and slowest bytes on average.
	stallTime = 5 * time.Second
	slowest   = 64 << 10
	young     = 250 * time.Millisecond
)

// unverified bounds the memory of bodies that are being read, apart from that of
// verified events. When it is full, the remote that uses most of it loses a body, so a
// sender that stalls makes room for others.
type unverified struct {
	max int64

	mu       sync.Mutex
	used     int64
	byRemote map[string]int64
	oldest   list.List // of *bodyReader
}

// bodyReader is one body that is being read.
type bodyReader struct {
	remote  string
	size    int64 // of its parts, 0 once it is forgotten
	place   *list.Element
	conn    *http.ResponseController
	started time.Time
	evicted bool
}

// readBody returns up to size bytes of a body, in parts. Room is made as bytes arrive, so
// a client that announces a body and does not send it uses little. The caller gives full
// parts back with freeParts.
func (u *unverified) readBody(w http.ResponseWriter, remote string, from io.Reader, size int64) (parts [][]byte, err error) {
	r := &bodyReader{remote: network(remote), conn: http.NewResponseController(w), started: time.Now()}
	defer u.forget(r)
	defer func() {
		if err != nil {
			freeParts(parts)
			parts = nil
		}
	}()
	left := int(size) + 1 // so that the end is seen without another part
	length := 0
	var part []byte
	for {
		if len(part) == cap(part) {
			n := min(left, partSize)
			if parts == nil {
				n = min(left, firstRead)
			}
			if err := u.grow(r, int64(n)); err != nil {
				return parts, err
			}
			part = newPart(n)
			parts = append(parts, part)
			left -= n
		}
		n, err := from.Read(part[len(part):cap(part)])
		part = part[:len(part)+n]
		parts[len(parts)-1] = part
		length += n
		if err != nil {
			u.forget(r) // evict must not set the deadline of a body that is complete
		}
		switch {
		case err != nil && r.evicted: // also at the end: net/http has met the deadline
			return parts, errFull
		case errors.Is(err, io.EOF):
			_ = r.conn.SetReadDeadline(time.Time{}) // net/http goes on reading while the event waits
			return parts, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return parts, errStalled
		case err != nil:
			return parts, err
		}
		u.progress(r, length)
		runtime.Gosched() // small bodies, and verified events, do not wait for this one
	}
}

// fullParts keeps parts of partSize bytes. Most of a flood's memory is reused, so it
// causes few garbage collections.
var fullParts = sync.Pool{New: func() any { return new([partSize]byte) }}

func newPart(size int) []byte {
	if size == partSize {
		return fullParts.Get().(*[partSize]byte)[:0]
	}
	return make([]byte, 0, size)
}

func freeParts(parts [][]byte) {
	for _, p := range parts {
		if cap(p) == partSize {
			fullParts.Put((*[partSize]byte)(p[:partSize]))
		}
	}
}

// grow makes room for n more bytes of r, and takes r's first place in line.
func (u *unverified) grow(r *bodyReader, n int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if r.place == nil {
		r.place = u.oldest.PushBack(r)
		r.allow(0)
	}
	for !r.evicted && u.used+n > u.max {
		u.evict()
	}
	if r.evicted {
		return errFull
	}
	r.size += n
	u.used += n
	u.byRemote[r.remote] += n
	return nil
}

// evict ends the oldest large body of the remote that uses most: one below the average of
// the remote's bodies would make little room. While all of them are young it ends the
// largest, because a small one is likely to be complete in a moment.
func (u *unverified) evict() {
	heaviest, most := "", int64(0)
	for remote, used := range u.byRemote {
		if used > most {
			heaviest, most = remote, used
		}
	}
	var bodies []*bodyReader // the oldest first
	for e := u.oldest.Front(); e != nil; e = e.Next() {
		if r := e.Value.(*bodyReader); r.remote == heaviest {
			bodies = append(bodies, r)
		}
	}
	large := func(r *bodyReader) bool { return r.size*int64(len(bodies)) >= most && time.Since(r.started) > young }
	victim := slices.MaxFunc(bodies, func(a, b *bodyReader) int { return cmp.Compare(a.size, b.size) })
	if i := slices.IndexFunc(bodies, large); i >= 0 {
		victim = bodies[i]
	}
	victim.evicted = true
	_ = victim.conn.SetReadDeadline(time.Unix(1, 0)) // its Read returns
	u.remove(victim)
}

// progress extends r's deadline after it has received n bytes.
func (u *unverified) progress(r *bodyReader, n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !r.evicted {
		r.allow(n)
	}
}

func (r *bodyReader) allow(n int) {
	deadline := r.started.Add(stallTime * time.Duration(1+n/slowest))
	if stalled := time.Now().Add(stallTime); stalled.Before(deadline) {
		deadline = stalled
	}
	_ = r.conn.SetReadDeadline(deadline)
}

func (u *unverified) forget(r *bodyReader) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.remove(r)
}

func (u *unverified) remove(r *bodyReader) {
	if r.place == nil {
		return
	}
	u.oldest.Remove(r.place)
	u.used -= r.size
	if u.byRemote[r.remote] -= r.size; u.byRemote[r.remote] == 0 {
		delete(u.byRemote, r.remote)
	}
	r.size, r.place = 0, nil
}

// network returns the remote's address, or of IPv6 the network that one sender has.
func network(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() && !addr.Is4In6() {
		if prefix, err := addr.Prefix(64); err == nil {
			return prefix.String()
		}
	}
	return host
}
