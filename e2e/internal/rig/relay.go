package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
)

// Program is a relay's executable: a file, or an image.
type Program struct {
	Path  string
	Image string
}

// Binary returns bin/name, as make build made it.
func Binary(name string) (Program, error) {
	root, err := brokers.Root()
	if err != nil {
		return Program{}, err
	}
	path := filepath.Join(root, "bin", name)
	if _, err := os.Stat(path); err != nil {
		return Program{}, fmt.Errorf("%w; make build makes it", err)
	}
	return Program{Path: path}, nil
}

// Image returns the image of the binary called name, as make images made it.
func Image(name string) Program { return Program{Image: "pgtrickle-relay/" + name + ":dev"} }

// Options of a relay. The zero value is a good choice.
type Options struct {
	Group   string            // --relay-group-id
	Env     map[string]string // more environment
	Args    []string          // more arguments
	Volumes []string          // folders that an image is to see, at the same place
	Limit   string            // memory limit of a container, as docker takes it
}

// Relay is a relay that runs, or ran.
type Relay struct {
	Addr string // of its HTTP server

	program   Program
	container string
	cmd       *exec.Cmd
	log       *os.File
	exited    chan struct{}
	err       error // of Wait; valid once exited is closed
}

// Migrate installs the relay's schema in the database.
func (p Program) Migrate(ctx context.Context, db string) error {
	cmd := p.command(ctx, "", nil, Options{}, "migrate", "--postgres-url", db)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("migrate: %w: %s", err, out)
	}
	return nil
}

// Start starts a relay and ends it with the test. It does not wait until it is
// ready. When the test fails, the end of the relay's log is printed.
func (p Program) Start(t testing.TB, db string, opts Options) *Relay {
	t.Helper()
	r, err := p.start(context.WithoutCancel(t.Context()), db, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Kill()
		if t.Failed() {
			t.Logf("log of %s%s:\n%s", p.Path, p.Image, r.Log())
		}
		if err := errors.Join(r.log.Close(), os.Remove(r.log.Name())); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (p Program) start(ctx context.Context, db string, opts Options) (*Relay, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{Addr: ln.Addr().String(), program: p, exited: make(chan struct{})}
	if err := ln.Close(); err != nil {
		return nil, err
	}
	if r.log, err = os.CreateTemp("", "relay-*.log"); err != nil {
		return nil, err
	}
	if p.Image != "" {
		r.container = fmt.Sprintf("pgtrickle-relay-e2e-%d-%d", os.Getpid(), containers.Add(1))
	}
	args := []string{"--postgres-url", db, "--metrics-addr", r.Addr}
	env := map[string]string{"PGTRICKLE_RELAY_ALLOW_ENV": "*", "PGTRICKLE_RELAY_ALLOW_FILES": "/"}
	if p.Image != "" { // by the environment, where the image's health check finds it, too
		args = nil
		env["PGTRICKLE_RELAY_POSTGRES_URL"], env["PGTRICKLE_RELAY_METRICS_ADDR"] = db, r.Addr
	}
	maps.Copy(env, opts.Env)
	if opts.Group != "" {
		args = append(args, "--relay-group-id", opts.Group)
	}
	r.cmd = p.command(ctx, r.container, env, opts, append(args, opts.Args...)...)
	r.cmd.Stderr = r.log
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		r.err = r.cmd.Wait()
		close(r.exited)
	}()
	return r, nil
}

var containers atomic.Int64

// command returns the program's command line, or that of docker running it.
func (p Program) command(ctx context.Context, container string, env map[string]string, opts Options, args ...string) *exec.Cmd {
	if p.Image == "" {
		cmd := exec.CommandContext(ctx, p.Path, args...)
		cmd.Env = os.Environ()
		for k, v := range env {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
		return cmd
	}
	// The servers are on this machine's loopback, so that is where the relay runs.
	run := []string{"run", "--rm", "--network", "host", "--label", "pgtrickle-relay-e2e.owner=" + brokers.Owner()}
	if container != "" {
		run = append(run, "--name", container)
	}
	if opts.Limit != "" {
		run = append(run, "--memory", opts.Limit, "--memory-swap", opts.Limit)
	}
	for _, v := range opts.Volumes {
		run = append(run, "--volume", v+":"+v)
	}
	for k, v := range env {
		run = append(run, "--env", k+"="+v)
	}
	return exec.CommandContext(ctx, "docker", append(append(run, p.Image), args...)...)
}

// Signal sends a signal to the relay.
func (r *Relay) Signal(s syscall.Signal) error {
	if r.container == "" {
		return r.cmd.Process.Signal(s)
	}
	out, err := exec.Command("docker", "kill", "--signal", strconv.Itoa(int(s)), r.container).CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker kill: %w: %s", err, out)
	}
	return nil
}

// Kill ends the relay with SIGKILL and waits until it is gone.
func (r *Relay) Kill() {
	for {
		select {
		case <-r.exited:
			return
		default:
		}
		err := r.Signal(syscall.SIGKILL) // a container that is just starting has nothing to kill yet
		select {
		case <-r.exited:
			return
		case <-time.After(map[bool]time.Duration{true: 10 * time.Second, false: 50 * time.Millisecond}[err == nil]):
		}
	}
}

// Stop asks the relay to drain and returns its exit error.
func (r *Relay) Stop(ctx context.Context) error {
	if err := r.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-r.exited:
		return r.err
	case <-ctx.Done():
		return errors.Join(ctx.Err(), errors.New("the relay does not end"))
	}
}

// Exited reports whether the relay has ended by itself, and how.
func (r *Relay) Exited() (bool, error) {
	select {
	case <-r.exited:
		return true, r.err
	default:
		return false, nil
	}
}

// Pid returns the process id, of a relay that is no container.
func (r *Relay) Pid() int { return r.cmd.Process.Pid }

// Container returns the name of the container of an image.
func (r *Relay) Container() string { return r.container }

// Health is the answer of /health.
type Health struct {
	Status         string  `json:"status"`
	PipelinesOwned int     `json:"pipelines_owned"`
	UptimeSeconds  float64 `json:"uptime_seconds"`
	Pipelines      []struct {
		State string `json:"state"`
	} `json:"pipelines"`
}

// Running counts the pipelines whose ends are open.
func (h Health) Running() (n int) {
	for _, p := range h.Pipelines {
		if p.State == "running" {
			n++
		}
	}
	return n
}

// Health asks for /health.
func (r *Relay) Health(ctx context.Context) (h Health, err error) {
	body, err := r.Get(ctx, "/health")
	if err != nil {
		return h, err
	}
	return h, json.Unmarshal(body, &h)
}

// Get returns the body of a page of the relay's HTTP server.
func (r *Relay) Get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.Addr+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return io.ReadAll(res.Body)
}

// FullLog returns the relay's log.
func (r *Relay) FullLog() ([]byte, error) { return os.ReadFile(r.log.Name()) }

// Log returns the end of the relay's log.
func (r *Relay) Log() string {
	content, err := r.FullLog()
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(content, []byte("\n"))
	var kept []string
	for _, line := range lines {
		if len(line) > 1000 {
			line = line[:1000]
		}
		if !bytes.Contains(line, []byte("DEBUG")) {
			kept = append(kept, string(line))
		}
	}
	return strings.Join(kept[max(0, len(kept)-40):], "\n")
}

// HealthCheck returns what Docker makes of the image's own health check.
func (r *Relay) HealthCheck(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "docker", "inspect", "--format", "{{.State.Health.Status}}", r.container).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("docker inspect: %w: %s", err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
