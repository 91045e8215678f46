package observe

import (
	_ "embed"
	"encoding/json"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

//go:embed page.html
var page []byte

// Status of a process. An unhealthy one needs attention.
const (
	Healthy   = "healthy"
	Unhealthy = "unhealthy"
	Degraded  = "degraded" // it works, and there is trouble that an operator has to see to
)

// Probes provide what the endpoints report.
type Probes struct {
	Health func() Health
	// Ready returns why the process cannot run pipelines, or nil.
	Ready func() error
	// Live returns why the process makes no progress, or nil.
	Live func() error
}

// handler serves /health, /livez, /readyz, /metrics, the status page at / and,
// with withPprof, /debug/pprof. The probes answer all peers, with details as g allows.
func handler(p Probes, gatherer prometheus.Gatherer, g *guard, withPprof bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		h := p.Health()
		code := http.StatusOK
		if h.Status == Unhealthy {
			code = http.StatusServiceUnavailable
		}
		if g.details(r) != nil {
			writeJSON(w, code, map[string]string{"status": h.Status})
			return
		}
		writeJSON(w, code, h)
	})
	mux.HandleFunc("GET /livez", g.probe(p.Live))
	mux.HandleFunc("GET /readyz", g.probe(p.Ready))
	mux.Handle("GET /metrics", only(g.metrics, promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}).ServeHTTP))

	details := func(pattern string, h http.HandlerFunc) { mux.Handle(pattern, only(g.details, h)) }
	details("GET /status.json", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, p.Health()) })
	details("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy",
			"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:")
		_, _ = w.Write(page)
	})
	if withPprof {
		details("/debug/pprof/", pprof.Index)
		details("/debug/pprof/profile", pprof.Profile)
		details("/debug/pprof/symbol", pprof.Symbol)
		details("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// only denies the requests for which refused returns an error.
func only(refused func(*http.Request) error, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := refused(r); err != nil {
			deny(w, err)
			return
		}
		h(w, r)
	})
}

func (g *guard) probe(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		err := check()
		if err == nil {
			_, _ = w.Write([]byte("ok\n"))
			return
		}
		text := "not ok"
		if g.details(r) == nil {
			text = err.Error()
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(text + "\n"))
	}
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client may have disconnected
}
