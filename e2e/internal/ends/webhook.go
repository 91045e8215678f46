package ends

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// webhookEnd is a receiver for the sink, and the address of the relay's own
// receiver for the source. In a round trip the sink posts to the latter.
type webhookEnd struct {
	server *http.Server
	addr   string
	bind   string
	mu     sync.Mutex
	got    []Record
}

func newWebhook(ctx context.Context, _ Env) (End, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	free, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	e := &webhookEnd{addr: ln.Addr().String(), bind: free.Addr().String()}
	e.serve(ln)
	return e, free.Close()
}

func (e *webhookEnd) serve(ln net.Listener) {
	server := &http.Server{Handler: e}
	e.server = server
	go func() { _ = server.Serve(ln) }() // until it is closed
}

// Restart breaks every connection, is away for a second, and comes back.
func (e *webhookEnd) Restart(ctx context.Context) error {
	if err := e.server.Close(); err != nil {
		return err
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", e.addr)
	if err != nil {
		return err
	}
	e.serve(ln)
	return nil
}

func (e *webhookEnd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.got = append(e.got, Record{ID: r.Header.Get("Idempotency-Key"), Key: r.Header.Get("Pgtrickle-Key"), Body: body})
}

func (e *webhookEnd) Sink() map[string]any {
	return map[string]any{"url": "http://" + e.addr + "/", "allow_private": true}
}

// Loop returns the keys of a sink that posts to the relay's own receiver.
func (e *webhookEnd) Loop() map[string]any {
	return map[string]any{"url": "http://" + e.bind + "/events", "allow_private": true}
}

func (e *webhookEnd) Source() map[string]any {
	return map[string]any{"bind": e.bind, "auth": "none", "path": "/events", "max_body": "4MiB"}
}

func (e *webhookEnd) Arrived(context.Context) ([]Record, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.got), nil
}

func (e *webhookEnd) Produce(ctx context.Context, records []Record) error {
	// One request at a time within a key, several keys side by side.
	byKey := make(map[string][]Record)
	for _, r := range records {
		byKey[r.Key] = append(byKey[r.Key], r)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, records := range byKey {
		g.Go(func() error {
			for _, r := range records {
				if err := retry(ctx, func(ctx context.Context) error { return e.post(ctx, r) }); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (e *webhookEnd) post(ctx context.Context, r Record) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+e.bind+"/events", bytes.NewReader(r.Body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", r.ID)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("the relay's receiver answers %s", res.Status)
	}
	return nil
}

func (e *webhookEnd) Close() { _ = e.server.Close() } // it has no reader left
