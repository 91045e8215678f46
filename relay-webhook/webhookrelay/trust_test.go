package webhookrelay

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// TestReplayWithAnotherID: a request of auth hmac that was copied and sent again is the
// same event, whatever its headers, which are not signed.
func TestReplayWithAnotherID(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		config map[string]any
		body   string
		want   int
	}{
		"id in the body":       {body: `{"dedup_key":"outbox_orders:1:0","payload":{}}`, want: 200},
		"id of a CloudEvent":   {body: `{"specversion":"1.0","id":"7","source":"/shop"}`, want: 200},
		"hash of the body":     {config: map[string]any{"on_missing_id": "hash"}, body: `{"n":1}`, want: 200},
		"hash of each element": {config: map[string]any{"on_missing_id": "hash"}, body: `[{"n":1}]`, want: 200},
		"no id":                {body: `{"n":1}`, want: 400},
		"no id in a batch":     {body: `[{"n":1}]`, want: 400},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := map[string]any{"auth": "hmac", "secret": "s"}
			maps.Copy(config, tc.config)
			r := start(t, config)
			var first string
			for i, forged := range []string{"webhook-id", "svix-id", "Idempotency-Key", "Pgtrickle-Dedup-Key", "ce-id"} {
				h := map[string]string{"X-Webhook-Signature": macHex("s", tc.body), forged: fmt.Sprint("forged-", i)}
				status, answer, _ := send(t, http.MethodPost, r.url, h, tc.body)
				if status != tc.want || status == 400 && !strings.Contains(answer, "no signed id") {
					t.Fatalf("with %s the answer is %d %s, want %d", forged, status, answer, tc.want)
				}
				if tc.want != 200 {
					continue
				}
				id := (<-r.got).ID
				if i == 0 {
					first = id
				}
				if id != first {
					t.Errorf("with %s the id is %q, want %q as before", forged, id, first)
				}
			}
		})
	}
}

// TestContentTypesWithoutAuth: a web page can send, to any address that its visitors
// reach, all content types but those of JSON.
func TestContentTypesWithoutAuth(t *testing.T) {
	t.Parallel()
	open, token := start(t, nil), start(t, map[string]any{"auth": "bearer", "secret": "s"})
	for mediaType, want := range map[string]int{
		"application/json": 200, "application/json; charset=utf-8": 200, "application/cloudevents+json": 200,
		"application/cloudevents-batch+json": 200, "text/plain": 415, "text/plain; x=application/json": 415, "": 415,
		"application/octet-stream": 415, "application/json, text/plain": 415, "multipart/form-data; boundary=x": 415,
	} {
		h := map[string]string{"Content-Type": mediaType, "Idempotency-Key": "a", "Authorization": "Bearer s"}
		if status, answer, _ := send(t, http.MethodPost, open.url, h, `{}`); status != want {
			t.Errorf("content type %q without auth is answered with %d %s, want %d", mediaType, status, answer, want)
		}
		if want == 415 && !strings.HasPrefix(mediaType, "multipart") {
			want = 200
		}
		if strings.HasPrefix(mediaType, "multipart") {
			want = 415
		}
		if status, answer, _ := send(t, http.MethodPost, token.url, h, `{}`); status != want {
			t.Errorf("content type %q with a token is answered with %d %s, want %d", mediaType, status, answer, want)
		}
	}
}

// TestStalledBodiesOfOthers: bodies that stall at one address take no room from a slow
// sender at another.
func TestStalledBodiesOfOthers(t *testing.T) {
	t.Parallel()
	r := start(t, map[string]any{"auth": "hmac", "secret": "s", "on_missing_id": "hash"})
	addr := strings.TrimSuffix(strings.TrimPrefix(r.url, "http://"), "/events")

	body := `"` + strings.Repeat("x", 900_000) + `"`
	slow := request(t, addr, "127.0.0.1", len(body), macHex("s", body))
	_, _ = io.WriteString(slow, body[:600_000])
	time.Sleep(2 * young) // the oldest and the largest body
	for range 40 {        // more than max_pending has room for
		conn := request(t, addr, "127.0.0.2", 986_860, "00")
		_, _ = io.WriteString(conn, strings.Repeat("x", 500_000))
	}
	time.Sleep(2 * young)
	_, _ = io.WriteString(slow, body[600_000:])
	answer := make([]byte, 12)
	if _, err := io.ReadFull(slow, answer); err != nil || string(answer) != "HTTP/1.1 200" {
		t.Errorf("the answer is %q, %v; want 200", answer, err)
	}
}

// request sends the head of a request from a loopback address.
func request(t *testing.T, addr, from string, length int, signature string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = fmt.Fprintf(conn, "POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Webhook-Signature: %s\r\nContent-Length: %d\r\n\r\n", signature, length)
	return conn
}

// A source that only this machine reaches logs how to let others in.
func TestLoopbackIsLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	cfg := sourceDefaults()
	cfg.Auth, cfg.Secret = authHMAC, nil
	env := relay.Env{Pipeline: "hooks", Logger: slog.New(slog.NewTextHandler(&log, nil))}
	shared := newListeners()
	src, err := newSource(context.Background(), env, cfg, shared)
	if err != nil {
		t.Fatal(err)
	}
	_ = src.Close()
	if !strings.Contains(log.String(), "set webhook_bind to 0.0.0.0:8080") {
		t.Errorf("the log has no cure:\n%s", &log)
	}
}
