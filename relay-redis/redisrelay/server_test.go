package redisrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// server is a Redis of the test's own, for what cannot be done to a shared one.
type server struct {
	addr   string
	dir    string
	args   []string
	opaque bool // cannot be asked without a password or TLS
	cmd    *exec.Cmd
}

// startServer starts redis-server, which must be installed, with more arguments.
func startServer(t testing.TB, args ...string) *server {
	t.Helper()
	s := newServer(t, args...)
	s.start(t)
	return s
}

func newServer(t testing.TB, args ...string) *server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("RELAY_TEST_REQUIRE") != "" {
			t.Fatal("redis-server is not installed, and RELAY_TEST_REQUIRE asks for every server")
		}
		t.Skip("redis-server is not installed: this test needs a server of its own")
	}
	return &server{addr: freeAddr(t), dir: t.TempDir(), args: args}
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (s *server) port() string {
	_, port, _ := net.SplitHostPort(s.addr)
	return port
}

func (s *server) url() string { return "redis://" + s.addr }

func (s *server) start(t testing.TB) {
	t.Helper()
	args := []string{"--port", s.port(), "--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--appendonly", "yes"}
	s.run(t, append(args, s.args...)...)
}

func (s *server) run(t testing.TB, args ...string) {
	t.Helper()
	out, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	s.cmd = exec.Command("redis-server", args...)
	s.cmd.Stdout, s.cmd.Stderr = out, out
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd := s.cmd
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "redis-server answers", func() bool {
		if s.opaque {
			conn, err := net.DialTimeout("tcp", s.addr, time.Second)
			if err == nil {
				conn.Close()
			}
			return err == nil
		}
		c := redis.NewClient(&redis.Options{Addr: s.addr, MaxRetries: -1})
		defer c.Close()
		return c.Ping(context.Background()).Err() == nil
	})
}

func (s *server) restart(t testing.TB) {
	t.Helper()
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.start(t)
}

func (s *server) client(t testing.TB) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.addr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("30 s have passed, and still not: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func testEnv(t testing.TB) relay.Env {
	return relay.Env{Pipeline: strings.ReplaceAll(t.Name(), "/", "-"), Group: "test", Identity: relaytest.Identity, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func uniqueName(t testing.TB) string {
	return fmt.Sprintf("test:%s:%d", strings.ReplaceAll(t.Name(), "/", "-"), time.Now().UnixNano())
}

func mustSink(t testing.TB, env relay.Env, config string) relay.Sink {
	t.Helper()
	s, err := Backend().Sink.New(t.Context(), env, []byte(config))
	if err != nil {
		t.Fatalf("NewSink(%s) = %v", config, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// failedAll returns the error of each message of a batch of n if all have failed.
func failedAll(t testing.TB, err error, n int) (failed []error) {
	t.Helper()
	partial, ok := errors.AsType[*relay.BatchError](err)
	if err == nil || ok && len(partial.Failed) != n {
		t.Fatalf("Publish = %v, want all %d messages failed", err, n)
	}
	for i := range n {
		if ok {
			failed = append(failed, partial.Failed[i])
		} else {
			failed = append(failed, err)
		}
	}
	return failed
}

// republish does as the engine: when it is unknown what arrived, it reads back the
// streams from the last position before it publishes the rest.
func republish(t testing.TB, s relay.Sink, err error, batch []relay.Message) {
	t.Helper()
	position, posErr := s.(relay.Resumer).Position(t.Context())
	if posErr != nil {
		t.Fatal(posErr)
	}
	if relay.IsUnknown(err) && position != "" {
		there := make(map[string]bool)
		if err := s.(relay.Resumer).Resume(t.Context(), position, func(id string) { there[id] = true }); err != nil {
			t.Fatal(err)
		}
		batch = slices.DeleteFunc(slices.Clone(batch), func(m relay.Message) bool { return there[m.ID] })
	}
	if err := s.Publish(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
}

func mustSource(t testing.TB, env relay.Env, config string) relay.Source {
	t.Helper()
	s, err := Backend().Source.New(t.Context(), env, []byte(config))
	if err != nil {
		t.Fatalf("NewSource(%s) = %v", config, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}
