package redisrelay

import (
	"io"
	"net"
	"sync"
	"testing"
)

// proxy stands between a test and a server.
type proxy struct {
	net.Listener

	mu     sync.Mutex
	target string // of new connections; "" accepts them in silence
	keep   int    // bytes of the answers that still pass before connections break; -1 is all
	conns  []net.Conn
}

func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: listener, target: target, keep: -1}
	go p.serve()
	t.Cleanup(func() {
		listener.Close()
		p.cut()
	})
	return p
}

func (p *proxy) serve() {
	for {
		in, err := p.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		target := p.target
		p.conns = append(p.conns, in)
		p.mu.Unlock()
		if target == "" {
			continue
		}
		out, err := net.Dial("tcp", target)
		if err != nil {
			in.Close()
			continue
		}
		go func() { _, _ = io.Copy(out, in); out.Close() }()
		go p.answer(in, out)
	}
}

// answer passes on what the server sends, as long as it may.
func (p *proxy) answer(in, out net.Conn) {
	defer in.Close()
	buf := make([]byte, 1<<16)
	for {
		n, err := out.Read(buf)
		n, torn := p.take(n)
		if _, err := in.Write(buf[:n]); err != nil {
			return
		}
		if err != nil || torn {
			return
		}
	}
}

func (p *proxy) take(n int) (passed int, torn bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keep < 0 {
		return n, false
	}
	passed = min(n, p.keep)
	p.keep -= passed
	return passed, passed < n
}

// loseAfter lets so many bytes of the answers pass, and breaks the connections
// on which there are more.
func (p *proxy) loseAfter(bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep = bytes
}

// pass loses nothing from now on.
func (p *proxy) pass() { p.loseAfter(-1) }

// point has new connections go to another server.
func (p *proxy) point(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}
