package webhookrelay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

const (
	// stoppedFor is how long a path is answered with 503 after its pipeline has
	// stopped, because a reload stops it for a moment.
	stoppedFor     = time.Minute
	headerTimeout  = 10 * time.Second
	requestTimeout = time.Minute
	idleTimeout    = 2 * time.Minute
	closeTimeout   = time.Second
)

// listeners are the addresses on which a process listens.
type listeners struct {
	mu     sync.Mutex
	byAddr map[string]*listener
}

func newListeners() *listeners { return &listeners{byAddr: make(map[string]*listener)} }

// listener is one address with the pipelines behind it.
type listener struct {
	tls    relaynet.ServerTLS // of its first pipeline
	server *http.Server
	served chan struct{}

	mu    sync.RWMutex
	paths map[string]route
}

type route struct {
	source *source   // nil after it has been closed
	until  time.Time // when the path of a closed source is forgotten
}

// add makes src reachable, and listens unless another source does already.
func (ls *listeners) add(ctx context.Context, src *source, env relay.Env) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	cfg := &src.cfg
	l := ls.byAddr[cfg.Bind]
	if l == nil {
		var err error
		if l, err = listen(ctx, cfg, env); err != nil {
			return err
		}
		ls.byAddr[cfg.Bind] = l
	}
	if l.tls != cfg.ServerTLS {
		return relay.Fatal(fmt.Errorf("listen on %s: another pipeline uses other TLS keys; make tls_cert, tls_key and client_ca equal", cfg.Bind))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if other := l.paths[cfg.Path].source; other != nil {
		return relay.Fatal(fmt.Errorf("listen on %s: path %s belongs to pipeline %q; choose another path", cfg.Bind, cfg.Path, other.pipeline))
	}
	l.paths[cfg.Path] = route{source: src}
	return nil
}

// remove removes src, and stops listening when it was the last.
func (ls *listeners) remove(src *source) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.byAddr[src.cfg.Bind]
	l.mu.Lock()
	l.paths[src.cfg.Path] = route{until: time.Now().Add(stoppedFor)}
	for _, r := range l.paths {
		if r.source != nil {
			l.mu.Unlock()
			return nil
		}
	}
	l.mu.Unlock()
	delete(ls.byAddr, src.cfg.Bind)
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := l.server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = l.server.Close() // a client does not finish its request
	}
	<-l.served
	return err
}

func listen(ctx context.Context, cfg *sourceConfig, env relay.Env) (*listener, error) {
	tlsConfig, err := cfg.Server(env.Read)
	if err != nil {
		return nil, err
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Bind)
	if err != nil {
		err = fmt.Errorf("listen on %s: %w", cfg.Bind, err)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, err // the last owner may be about to stop
		}
		return nil, relay.Fatal(err)
	}
	l := &listener{tls: cfg.ServerTLS, paths: make(map[string]route), served: make(chan struct{})}
	l.server = &http.Server{
		Handler:           l,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(env.Logger.Handler(), slog.LevelDebug),
	}
	if tlsConfig != nil {
		tlsConfig.NextProtos = []string{"h2", "http/1.1"}
		ln = tls.NewListener(ln, tlsConfig)
	}
	go func() {
		defer close(l.served)
		if err := l.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			env.Logger.Error("webhook listener stopped", "bind", cfg.Bind, "err", err)
		}
	}()
	return l, nil
}

// ServeHTTP finds the pipeline of a path.
func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.RLock()
	to, ok := l.paths[r.URL.Path]
	l.mu.RUnlock()
	switch {
	case to.source != nil:
		to.source.serve(w, r)
	case ok && time.Now().Before(to.until):
		refuse(w, http.StatusServiceUnavailable, "the pipeline is stopping or restarting")
	default:
		refuse(w, http.StatusNotFound, "no pipeline has this path")
	}
}
