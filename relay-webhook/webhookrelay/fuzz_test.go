package webhookrelay

import (
	"bufio"
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// FuzzRequest sends any request. Without a valid signature none is accepted. Where none is
// needed, the memory for it is given back once its events are settled.
func FuzzRequest(f *testing.F) {
	for _, text := range []string{
		"POST /hook HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"dedup_key\":\"a\"}",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: a\r\nContent-Type: application/cloudevents+json\r\nContent-Length: 999\r\n\r\n{\"id\":1",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nIdempotency-Key: x\r\nContent-Length: 9\r\n\r\n[{},1,\"\"]",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nWebhook-Id: a\r\nWebhook-Timestamp: 1\r\nWebhook-Signature: v1,=\r\nContent-Length: 2\r\n\r\n{}",
		"GET / HTTP/1.0\r\n\r\n",
	} {
		f.Add([]byte(text))
	}
	newFuzzed := func(auth string) *source {
		cfg := sourceDefaults()
		cfg.Auth, cfg.MaxBody, cfg.MaxPending = auth, 64<<10, 1<<20
		if cfg.Auth != "none" {
			cfg.Secret = []relaycfg.Secret{"s1"}
		}
		if err := cfg.Validate(); err != nil {
			f.Fatal(err)
		}
		return &source{
			cfg: cfg, verify: newVerifier(&cfg), stop: make(chan struct{}), arrived: make(chan struct{}, 1), inFlight: make(map[string]*item),
			unverified: unverified{max: int64(cfg.MaxPending), byRemote: make(map[string]int64)},
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, auth := range []string{"none", "bearer", "hmac", "standard-webhooks", "github", "stripe"} {
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(text)))
			if err != nil {
				return
			}
			r.RemoteAddr = "192.0.2.1:1"
			s, answered, w := newFuzzed(auth), make(chan struct{}), httptest.NewRecorder()
			go func() {
				defer close(answered)
				s.serve(w, r)
			}()
			for open := true; open; {
				select {
				case <-s.arrived:
					batch, err := s.Receive(t.Context(), 1000)
					if err == nil {
						err = s.Ack(t.Context(), batch)
					}
					if err != nil {
						t.Fatal(err)
					}
				case <-answered:
					open = false
				}
			}
			if w.Code == http.StatusOK && auth != "none" {
				t.Errorf("auth %s accepted it", auth)
			}
			if w.Code >= 500 {
				t.Errorf("auth %s: answer %d: %s", auth, w.Code, w.Body)
			}
			if s.reserved != 0 || s.unverified.used != 0 || len(s.unverified.byRemote) != 0 || s.unverified.oldest.Len() != 0 {
				t.Errorf("auth %s: %d and %d bytes are still reserved", auth, s.reserved, s.unverified.used)
			}
		}
	})
}
