package webhookrelay

import (
	"container/list"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"
)

const (
	// firstRead is how many bytes of a body there is room for before any has come.
	firstRead = 4 << 10
	// A body must arrive within stallTime, and stallTime more for each slowest bytes.
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
	size    int64 // of its buffer, 0 once it is forgotten
	place   *list.Element
	conn    *http.ResponseController
	started time.Time
	evicted bool
}

// readBody returns up to size bytes of a body. Its buffer doubles as bytes arrive, so a
// client that announces a body and does not send it uses little.
func (u *unverified) readBody(w http.ResponseWriter, remote string, from io.Reader, size int64) ([]byte, error) {
	r := &bodyReader{remote: network(remote), conn: http.NewResponseController(w), started: time.Now()}
	defer u.forget(r)
	most := int(size) + 1 // so that the end is seen without growing
	var body []byte
	for {
		if len(body) == cap(body) {
			grown := min(most, max(firstRead, 2*cap(body)))
			if err := u.grow(r, int64(grown-cap(body))); err != nil {
				return nil, err
			}
			body = append(make([]byte, 0, grown), body...)
		}
		n, err := from.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if err != nil {
			u.forget(r) // evict must not set the deadline of a body that is complete
		}
		switch {
		case err != nil && r.evicted: // also at the end: net/http has met the deadline
			return nil, errFull
		case errors.Is(err, io.EOF):
			_ = r.conn.SetReadDeadline(time.Time{}) // net/http goes on reading while the event waits
			return body, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, errStalled
		case err != nil:
			return nil, err
		}
		u.progress(r, len(body))
	}
}

// grow adds n bytes to r's buffer, and takes r's first place in line.
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

// evict ends the oldest body of the remote that uses most. While all of its bodies are
// young it ends the largest: a small one is likely to be complete in a moment.
func (u *unverified) evict() {
	heaviest, most := "", int64(0)
	for remote, used := range u.byRemote {
		if used > most {
			heaviest, most = remote, used
		}
	}
	var victim *bodyReader
	for e := u.oldest.Front(); e != nil; e = e.Next() {
		if r := e.Value.(*bodyReader); r.remote == heaviest && (victim == nil || r.size > victim.size) {
			if victim = r; time.Since(r.started) > young {
				break
			}
		}
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
	_ = r.conn.SetReadDeadline(r.started.Add(stallTime * time.Duration(1+n/slowest)))
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
