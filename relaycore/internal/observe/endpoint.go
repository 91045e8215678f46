package observe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Endpoint is the address at which a process shows its health and metrics, and the
// requests that see more than a status.
type Endpoint struct {
	Addr      string // host:port
	TokenFile string // holds a token; "" shows details to this machine alone
	TLSCert   string // PEM file; "" serves plain HTTP
	TLSKey    string
	Pprof     bool
}

const (
	minToken       = 16  // characters
	maxConnections = 100 // at a time
)

// Server serves an endpoint.
type Server struct {
	*http.Server
	ln net.Listener
}

// Open listens at e, logs what is open to which peers, and returns a server to run.
func Open(ctx context.Context, e Endpoint, p Probes, gatherer prometheus.Gatherer, log *slog.Logger) (*Server, error) {
	g, err := e.guard()
	if err != nil {
		return nil, err
	}
	ln, err := e.listen(ctx)
	if err != nil {
		return nil, err
	}
	metrics, details := "all peers", "this machine"
	if g.token != nil {
		metrics, details = "token", "token"
	}
	log.Info("metrics endpoint open", "addr", ln.Addr().String(), "tls", e.TLSCert != "", "probes", "all peers",
		"metrics", metrics, "details", details, "pprof", e.Pprof)
	return &Server{ln: ln, Server: &http.Server{
		Handler:        handler(p, gatherer, g, e.Pprof),
		ReadTimeout:    5 * time.Second,
		WriteTimeout:   30 * time.Second, // pprof extends it by the time of a profile
		IdleTimeout:    time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}, nil
}

// Run serves requests until s is shut down. It then returns [http.ErrServerClosed].
func (s *Server) Run() error { return s.Serve(s.ln) }

func (e *Endpoint) listen(ctx context.Context) (net.Listener, error) {
	if e.TLSCert != "" {
		if _, err := e.certificate(nil); err != nil {
			return nil, err
		}
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", e.Addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("%w; a relay keeps it until it has drained: wait for its end, or give another address", err)
	}
	if err != nil {
		return nil, fmt.Errorf("--metrics-addr: %w", err)
	}
	ln = &limited{Listener: ln, max: maxConnections}
	if e.TLSCert != "" {
		ln = tls.NewListener(ln, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: e.certificate})
	}
	return ln, nil
}

// certificate reads the files at each handshake, so that a renewed one is used.
func (e *Endpoint) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(e.TLSCert, e.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("--metrics-tls-cert, --metrics-tls-key: %w", err)
	}
	return &pair, nil
}

// guard decides what a request may see. Without a token, details are for requests from
// this machine, and metrics for all peers.
type guard struct {
	token *[sha256.Size]byte
	names []string // by which requests may call this process
}

func (e *Endpoint) guard() (*guard, error) {
	host, _, _ := net.SplitHostPort(e.Addr)
	own, _ := os.Hostname()
	g := &guard{names: []string{strings.ToLower(host), strings.ToLower(own)}}
	if e.TokenFile == "" {
		return g, nil
	}
	token, err := readToken(e.TokenFile)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(token))
	g.token = &sum
	return g, nil
}

// readToken returns the token in the file that --metrics-token-file names.
func readToken(name string) (string, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("--metrics-token-file: %w", err)
	}
	token := string(bytes.TrimSpace(content))
	if len(token) < minToken {
		return "", fmt.Errorf("--metrics-token-file: %s has a token of %d characters; must have at least %d", name, len(token), minToken)
	}
	return token, nil
}

var (
	errNoToken   = errors.New("the token is missing or wrong; send it as bearer token or as password")
	errForeign   = errors.New("details are for requests from this machine; set --metrics-token-file")
	errWrongHost = errors.New("the Host header has a name that is not ours; use an address, or set --metrics-token-file")
)

// metrics returns why r may not read metrics, or nil.
func (g *guard) metrics(r *http.Request) error {
	switch {
	case g.token != nil && !g.hasToken(r):
		return errNoToken
	case g.token == nil && !g.ours(r.Host):
		return errWrongHost
	}
	return nil
}

// details returns why r may not read details, or nil.
func (g *guard) details(r *http.Request) error {
	if err := g.metrics(r); g.token != nil || err != nil {
		return err
	}
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !addr.Addr().Unmap().IsLoopback() || proxied(r.Header) {
		return errForeign
	}
	return nil
}

// proxied reports whether a proxy on this machine passes the request of another peer on.
func proxied(h http.Header) bool {
	for name := range h {
		if name == "Forwarded" || name == "Via" || name == "X-Real-Ip" || strings.HasPrefix(name, "X-Forwarded-") {
			return true
		}
	}
	return false
}

// hasToken accepts the token also as the password of basic authentication, which
// browsers ask for.
func (g *guard) hasToken(r *http.Request) bool {
	_, token, ok := r.BasicAuth()
	if !ok {
		token, _ = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	}
	sum := sha256.Sum256([]byte(token)) // one length, so the time is the same for all tokens
	return subtle.ConstantTimeCompare(sum[:], g.token[:]) == 1
}

// ours reports whether no web page of another site can have this host. A site can let
// its own name resolve to our address, and then read our answers in the browsers of its
// visitors: DNS rebinding.
func (g *guard) ours(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil || slices.Contains(g.names, host) {
		return true
	}
	dot := strings.LastIndexByte(host, '.')
	return dot < 0 || slices.Contains([]string{".svc", ".local", ".internal", ".localhost"}, host[dot:]) // not public
}

// deny answers a request that may not see what it asks for.
func deny(w http.ResponseWriter, err error) {
	code := http.StatusForbidden
	switch {
	case errors.Is(err, errNoToken):
		w.Header().Set("WWW-Authenticate", `Basic realm="pgtrickle-relay"`)
		code = http.StatusUnauthorized
	case errors.Is(err, errWrongHost):
		code = http.StatusMisdirectedRequest
	}
	http.Error(w, err.Error(), code)
}

// limited is a listener with a maximum of connections. A connection beyond it takes the
// place of the oldest of the remote that has the most: slow readers keep no probe out.
type limited struct {
	net.Listener
	max int

	mu   sync.Mutex
	open []*limitedConn // the oldest first
}

type limitedConn struct {
	net.Conn
	from   *limited
	remote string
}

// Accept implements [net.Listener].
func (l *limited) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	remote, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	c := &limitedConn{Conn: conn, from: l, remote: remote}
	if victim := l.add(c); victim != nil {
		_ = victim.Close()
	}
	return c, nil
}

func (l *limited) add(c *limitedConn) (victim *limitedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) >= l.max {
		count := map[string]int{c.remote: 1}
		for _, o := range l.open {
			count[o.remote]++
		}
		victim = l.open[0]
		for _, o := range l.open {
			if count[o.remote] > count[victim.remote] {
				victim = o
			}
		}
	}
	l.open = append(l.open, c)
	return victim
}

// Close implements [net.Conn].
func (c *limitedConn) Close() error {
	c.from.mu.Lock()
	c.from.open = slices.DeleteFunc(c.from.open, func(o *limitedConn) bool { return o == c })
	c.from.mu.Unlock()
	return c.Conn.Close()
}
