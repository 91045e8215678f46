package natsrelay

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// server is a nats-server of a test's own, for what a shared one cannot do:
// restart, refuse, and know certificates.
type server struct {
	url  string
	conf string
	cmd  *exec.Cmd
}

// startServer runs the nats-server that RELAY_TEST_NATS_SERVER names or PATH
// has. extra is configuration beside address and JetStream storage, inJetStream
// goes into the jetstream block.
func startServer(t testing.TB, extra string, inJetStream ...string) *server {
	t.Helper()
	binary := os.Getenv("RELAY_TEST_NATS_SERVER")
	if binary == "" {
		var err error
		if binary, err = exec.LookPath("nats-server"); err != nil {
			if os.Getenv("RELAY_TEST_REQUIRE") != "" {
				t.Fatal("no nats-server: set RELAY_TEST_NATS_SERVER or put one in PATH; RELAY_TEST_REQUIRE asks for every server")
			}
			t.Skip("no nats-server: set RELAY_TEST_NATS_SERVER or put one in PATH")
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	dir := t.TempDir()
	s := &server{url: "nats://" + addr, conf: filepath.Join(dir, "nats.conf")}
	conf := fmt.Sprintf("listen: %q\njetstream { store_dir: %q\n%s }\n%s\n", addr, dir, strings.Join(inJetStream, "\n"), extra)
	if err := os.WriteFile(s.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start(t, binary)
	t.Cleanup(s.kill)
	return s
}

func (s *server) start(t testing.TB, binary string) {
	t.Helper()
	var output bytes.Buffer
	s.cmd = exec.Command(binary, "-c", s.conf)
	s.cmd.Stderr = &output
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimPrefix(s.url, "nats://")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			s.kill()
			t.Fatalf("nats-server does not answer at %s: %v\n%s", addr, err, output.Bytes())
		}
	}
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// restart kills the server as a crash would, and starts it again.
func (s *server) restart(t testing.TB) {
	t.Helper()
	s.kill()
	s.start(t, s.cmd.Path)
}

// freeze stops the server's process without closing its connections.
func (s *server) freeze(t testing.TB) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) { // it takes a moment
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
		if err != nil || strings.Contains(string(stat), ") T ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nats-server does not stop: %s", stat)
		}
	}
}

func (s *server) thaw() { _ = s.cmd.Process.Signal(syscall.SIGCONT) }

// connect is a client without anything of ours.
func connect(t testing.TB, url string) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatalf("connect to %s: %v", url, err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

// addStream makes a stream of the test's own, and returns its name and a prefix
// for subjects that it takes.
func addStream(t testing.TB, js jetstream.JetStream, change func(*jetstream.StreamConfig)) (name, prefix string) {
	t.Helper()
	name = strings.NewReplacer("/", "_", ".", "_", "#", "_", "=", "_").Replace(t.Name()) + fmt.Sprint(time.Now().UnixNano())
	cfg := jetstream.StreamConfig{Name: name, Subjects: []string{name + ".>"}, Storage: jetstream.FileStorage}
	if change != nil {
		change(&cfg)
	}
	ctx := testContext(t)
	if _, err := js.CreateStream(ctx, cfg); err != nil {
		t.Fatalf("create stream: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = js.DeleteStream(ctx, name)
	})
	return name, name
}

func changeStream(t testing.TB, js jetstream.JetStream, name string, change func(*jetstream.StreamConfig)) {
	t.Helper()
	s, err := js.Stream(testContext(t), name)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	change(&cfg)
	if _, err := js.UpdateStream(testContext(t), cfg); err != nil {
		t.Fatal(err)
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func testEnv() relay.Env {
	return relay.Env{Pipeline: "orders", Identity: relaytest.Identity, Group: "default", Logger: slog.New(slog.DiscardHandler)}
}
