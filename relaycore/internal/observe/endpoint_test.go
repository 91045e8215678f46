package observe

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// request asks as remote, with a Host header and further ones.
func request(h http.Handler, path, remote, host string, header http.Header) (int, string) {
	r := httptest.NewRequest(http.MethodGet, path, http.NoBody)
	r.RemoteAddr, r.Host = remote, host
	for name := range header {
		r.Header.Set(name, header.Get(name))
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

const secret = "broker 10.0.0.7 refused user relay"

// unhealthy is an endpoint whose every answer about details has the secret.
func unhealthy(t *testing.T, e Endpoint) http.Handler {
	t.Helper()
	g, err := e.guard()
	if err != nil {
		t.Fatal(err)
	}
	away := func() error { return errors.New(secret) }
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "events_total", Help: secret}, func() float64 { return 1 }))
	health := func() Health { return Health{Status: Unhealthy, Reasons: []string{secret}} }
	return handler(Probes{Health: health, Ready: away, Live: away}, reg, g, true)
}

func tokenFile(t *testing.T, token string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(name, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestStrangersSeeNoDetails asks for every path as different peers.
func TestStrangersSeeNoDetails(t *testing.T) {
	t.Parallel()
	const token = "0123456789abcdef"
	open := unhealthy(t, Endpoint{Addr: "relay.example.com:9090"})
	closed := unhealthy(t, Endpoint{Addr: "0.0.0.0:9090", TokenFile: tokenFile(t, token+"\n")})
	bearer := http.Header{"Authorization": {"Bearer " + token}}
	basic := http.Header{"Authorization": {"Basic OjAxMjM0NTY3ODlhYmNkZWY="}}
	const here, there = "127.0.0.1:4000", "10.0.0.9:4000"

	for name, tc := range map[string]struct {
		h               http.Handler
		remote, host    string
		header          http.Header
		details, metric int // codes of the status page and of metrics
	}{
		"this machine":               {open, here, "127.0.0.1:9090", nil, 200, 200},
		"this machine, IPv6":         {open, "[::1]:4000", "[::1]:9090", nil, 200, 200},
		"this machine, mapped":       {open, "[::ffff:127.0.0.1]:4000", "localhost", nil, 200, 200},
		"this machine, its own name": {open, here, "Relay.Example.COM.", nil, 200, 200},
		"a page of another site":     {open, here, "evil.example", nil, 421, 421},
		"a proxy on this machine":    {open, here, "127.0.0.1:9090", http.Header{"X-Forwarded-For": {"10.0.0.9"}}, 403, 200},
		"another, says Forwarded":    {open, here, "127.0.0.1:9090", http.Header{"Forwarded": {"for=10.0.0.9"}}, 403, 200},
		"another, says X-Real-IP":    {open, here, "127.0.0.1:9090", http.Header{"X-Real-Ip": {"10.0.0.9"}}, 403, 200},
		"another, says Via":          {open, here, "127.0.0.1:9090", http.Header{"Via": {"1.1 proxy"}}, 403, 200},
		"another, X-Forwarded-Proto": {open, here, "127.0.0.1:9090", http.Header{"X-Forwarded-Proto": {"https"}}, 403, 200},
		"another machine":            {open, there, "10.0.0.1:9090", nil, 403, 200},
		"a service of Kubernetes":    {open, there, "relay.default.svc:9090", nil, 403, 200},
		"a page, from there":         {open, there, "evil.example:9090", nil, 421, 421},
		"no token":                   {closed, here, "127.0.0.1:9090", nil, 401, 401},
		"bearer token":               {closed, there, "relay.example.com", bearer, 200, 200},
		"token as password":          {closed, there, "relay.example.com", basic, 200, 200},
		"wrong token":                {closed, here, "localhost", http.Header{"Authorization": {"Bearer 0123456789abcdeg"}}, 401, 401},
		"part of the token":          {closed, here, "localhost", http.Header{"Authorization": {"Bearer 0123456789abcde"}}, 401, 401},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, path := range []string{"/health", "/livez", "/readyz"} {
				code, body := request(tc.h, path, tc.remote, tc.host, tc.header)
				if shown := strings.Contains(body, secret); code != 503 || shown != (tc.details == 200) {
					t.Errorf("GET %s = %d %s", path, code, body)
				}
			}
			for _, path := range []string{"/", "/status.json", "/debug/pprof/", "/debug/pprof/goroutine?debug=1", "/debug/pprof/symbol"} {
				code, body := request(tc.h, path, tc.remote, tc.host, tc.header)
				if code != tc.details || code != 200 && strings.Contains(body, secret) {
					t.Errorf("GET %s = %d %s, want %d", path, code, body, tc.details)
				}
			}
			code, body := request(tc.h, "/metrics", tc.remote, tc.host, tc.header)
			if code != tc.metric || (code == 200) != strings.Contains(body, "events_total") {
				t.Errorf("GET /metrics = %d %s, want %d", code, body, tc.metric)
			}
		})
	}
}

func TestTokenFile(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]string{
		"is missing": filepath.Join(t.TempDir(), "none"), "is empty": tokenFile(t, "\n"), "is short": tokenFile(t, "0123456789abcde\n"),
	} {
		_, err := Open(t.Context(), Endpoint{Addr: "127.0.0.1:0", TokenFile: file}, Probes{}, nil, slog.New(slog.DiscardHandler))
		if err == nil || !strings.HasPrefix(err.Error(), "--metrics-token-file: ") {
			t.Errorf("a token file that %s: %v", name, err)
		}
	}
}

// TestSlowReadersOfMetrics: clients that do not read their answers, and connections
// without a request, keep no probe out.
func TestSlowReadersOfMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	long := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "long", Help: "Long."}, []string{"label"})
	reg.MustRegister(long)
	for i := range 200 { // more than sockets hold
		long.WithLabelValues(fmt.Sprint(i, strings.Repeat("x", 50_000))).Set(1)
	}
	ok := func() error { return nil }
	srv, err := Open(t.Context(), Endpoint{Addr: "127.0.0.1:0"}, Probes{Ready: ok, Live: ok}, reg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if srv.WriteTimeout == 0 || srv.ReadTimeout == 0 || srv.IdleTimeout == 0 {
		t.Error("a timeout is missing")
	}
	served := make(chan error, 1)
	go func() { served <- srv.Run() }()
	addr := srv.ln.Addr().String()

	for i := range 3 * maxConnections {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%10 == 0 {
			_, _ = io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
		}
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range 10 {
		resp, err := client.Get("http://" + addr + "/livez")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	l := srv.ln.(*limited)
	l.mu.Lock()
	if n := len(l.open); n > maxConnections {
		t.Errorf("%d connections are open, want at most %d", n, maxConnections)
	}
	l.mu.Unlock()
	_ = srv.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	if l.mu.Lock(); len(l.open) > 0 {
		t.Errorf("%d connections are left", len(l.open))
	}
	l.mu.Unlock()
}

// The remote with the most connections loses one, not the one that has a few old ones.
func TestHeaviestRemoteLosesConnections(t *testing.T) {
	t.Parallel()
	l := &limited{max: 3}
	for i, tc := range []struct{ remote, victim string }{
		{"probe", ""}, {"flood", ""}, {"flood", ""}, {"other", "flood"}, {"flood", "flood"}, {"third", "probe"},
	} {
		victim := l.add(&limitedConn{remote: tc.remote})
		if (victim == nil) != (tc.victim == "") || victim != nil && victim.remote != tc.victim {
			t.Errorf("connection %d from %s replaces %+v, want one of %q", i, tc.remote, victim, tc.victim)
		}
		for j, o := range l.open {
			if o == victim {
				l.open = append(l.open[:j], l.open[j+1:]...)
				break
			}
		}
	}
}
