package relaynet_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

var testPeer = relaynet.Peer{Key: "x_url", Name: "X server", TLS: "x_tls"}

func TestWrongPeerIsRecognised(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ head, want string }{
		"HTTP":       {"HTTP/1.1 400 Bad Request\r\n", "this looks like an HTTP server; check host and port"},
		"NATS":       {`INFO {"server_id":"x"}`, "this looks like a NATS server"},
		"AMQP":       {"AMQP\x00\x00\x09\x01", "this looks like an AMQP server"},
		"TLS alert":  {"\x15\x03\x01\x00\x02\x02\x28", "this looks like TLS; set x_tls"},
		"PostgreSQL": {"E\x00\x00\x00\x8aSFATAL\x00", "this looks like PostgreSQL"},
		"no TLS":     {"N", "this looks like PostgreSQL"},
		"Redis":      {"-ERR unknown command\r\n", "this looks like Redis"},
		"SSH":        {"SSH-2.0-OpenSSH", "this looks like an SSH server"},
		"unknown":    {"\xff\x01", "it sent bytes that are no answer; check host and port"},
	} {
		err := testPeer.Wrong([]byte(tc.head))
		if !strings.Contains(err.Error(), "the server at x_url is no X server: "+tc.want) {
			t.Errorf("%s: %v, want one with %q", name, err, tc.want)
		}
	}
}

// peerThatSends returns a guarded connection to a peer that sends text and hangs up.
func peerThatSends(t *testing.T, text string, check func([]byte) error) net.Conn {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { _ = near.Close() })
	go func() {
		if text != "" { // a pipe passes on empty writes
			_, _ = io.WriteString(far, text)
		}
		_ = far.Close()
	}()
	return relaynet.Guard(near, testPeer, check)
}

func TestGuardKeepsWhatIsRefused(t *testing.T) {
	t.Parallel()
	refusal := errors.New("refused")
	seen := 0
	conn := peerThatSends(t, "good bad", func(p []byte) error {
		if seen += len(p); seen > 4 {
			return refusal
		}
		return nil
	})
	p := make([]byte, 4)
	if n, err := conn.Read(p); err != nil || string(p[:n]) != "good" {
		t.Fatalf("Read = %q, %v", p[:n], err)
	}
	for range 2 {
		if n, err := conn.Read(p); n != 0 || !errors.Is(err, refusal) {
			t.Errorf("Read = %d, %v after a refusal, want 0 and the refusal", n, err)
		}
	}
}

func TestGuardExplainsSilence(t *testing.T) {
	t.Parallel()
	pass := func([]byte) error { return nil }
	_, err := peerThatSends(t, "", pass).Read(make([]byte, 1))
	if !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "x_tls") {
		t.Errorf("Read = %v of a peer that hangs up, want io.EOF with the keys to check", err)
	}
	conn := peerThatSends(t, "hello", pass)
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("ReadAll = %v of a peer that hangs up later, want nil", err)
	}
}
