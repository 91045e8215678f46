package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// relayProcess is the relay as an operator runs it.
type relayProcess struct {
	binary string
	log    string
	http   int // port of its HTTP server
	cmd    *exec.Cmd
	ended  chan error
}

// command runs a command of the relay and returns its output.
func (r *relayProcess) command(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, r.binary, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("pgtrickle-relay %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// start runs the daemon.
func (r *relayProcess) start(postgresURL string) error {
	log, err := os.OpenFile(r.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	r.cmd = exec.Command(r.binary, "--postgres-url", postgresURL, "--metrics-addr", fmt.Sprintf("127.0.0.1:%d", r.http))
	r.cmd.Stdout, r.cmd.Stderr = log, log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.cmd.Start(); err != nil {
		return err
	}
	r.ended = make(chan error, 1)
	go func(cmd *exec.Cmd, ended chan<- error) { ended <- cmd.Wait() }(r.cmd, r.ended)
	return nil
}

// kill ends the process with SIGKILL.
func (r *relayProcess) kill() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill()
	<-r.ended
	r.cmd = nil
}

// stop sends SIGTERM and waits until the relay has drained.
func (r *relayProcess) stop(ctx context.Context) error {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-r.ended:
		r.cmd = nil
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// health is the part of the answer that the demo shows.
type health struct {
	Status    string  `json:"status"`
	Owned     int     `json:"pipelines_owned"`
	Uptime    float64 `json:"uptime_seconds"`
	Pipelines []struct {
		Name      string `json:"name"`
		Direction string `json:"direction"`
		State     string `json:"state"`
		Guarantee string `json:"guarantee"`
	} `json:"pipelines"`
}

func (h health) running() (n int) {
	for _, p := range h.Pipelines {
		if p.State == "running" {
			n++
		}
	}
	return n
}

// awaitHealthy waits until all pipelines run, and returns the answer of /health.
func (r *relayProcess) awaitHealthy(ctx context.Context, pipelines int) (health, error) {
	var last string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		body, code, err := r.get(ctx, "/health")
		var h health
		if err == nil && code == http.StatusOK && json.Unmarshal(body, &h) == nil && h.running() == pipelines {
			return h, nil
		}
		last = fmt.Sprintf("%d %s %v", code, body, err)
		select {
		case <-ctx.Done():
			return health{}, ctx.Err()
		case err := <-r.ended:
			r.cmd = nil
			return health{}, fmt.Errorf("the relay ended: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return health{}, errors.New("the relay is not healthy after 30 s: " + last)
}

func (r *relayProcess) get(ctx context.Context, path string) ([]byte, int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", r.http, path), nil)
	if err != nil {
		return nil, 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return body, resp.StatusCode, err
}

// tail returns the end of the relay's log, for a failed demo.
func (r *relayProcess) tail() string {
	text, err := os.ReadFile(r.log)
	if err != nil || len(text) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "the relay's log ends:\n  " + strings.Join(lines[max(0, len(lines)-20):], "\n  ")
}
