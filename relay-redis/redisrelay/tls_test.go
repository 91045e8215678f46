package redisrelay

import (
	"fmt"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

func TestTLSAndACL(t *testing.T) {
	srv := startServer(t)
	raw := srv.client(t)
	if err := raw.Do(t.Context(), "acl", "setuser", "relay", "on", ">secret", "~pgtrickle:*", "+xadd", "+xrange", "+xrevrange", "+ping", "+time", "+multi", "+exec", "+wait").Err(); err != nil {
		t.Fatal(err)
	}
	ca := tlstest.New(t)
	cert, key := ca.Issue(t, "relay")
	addr := ca.Terminate(t, srv.addr)
	config := fmt.Sprintf(`"username":"relay","password":"secret","tls_ca":%q,"tls_cert":%q,"tls_key":%q`, ca.File, cert, key)
	s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":"rediss://%s",%s}`, addr, config))
	if err := s.Publish(t.Context(), []relay.Message{relaytest.Message(1, "k")}); err != nil {
		t.Fatal(err)
	}
	if position, err := s.(relay.Resumer).Position(t.Context()); err != nil || position == "" {
		t.Errorf("Position() = %q, %v", position, err)
	}
	if got := ids(t, raw, "pgtrickle:orders"); len(got) != 1 {
		t.Errorf("stream has %d entries, want 1", len(got))
	}
	// Another stream is not the user's, which is for an operator.
	other := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":"redis://%s","stream":"other",%s}`, addr, config))
	if err := other.Publish(t.Context(), []relay.Message{relaytest.Message(1, "k")}); !relay.IsFatal(err) {
		t.Errorf("Publish to a stream that is forbidden = %v, want a fatal error", err)
	}
	// So is a server whose authority is not trusted.
	if _, err := Backend().Sink.New(t.Context(), testEnv(t), fmt.Appendf(nil, `{"url":"redis://%s","tls":true}`, addr)); !relay.IsFatal(err) {
		t.Errorf("NewSink without tls_ca = %v, want a fatal error", err)
	}
}
