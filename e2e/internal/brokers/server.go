package brokers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os/exec"
	"strings"
	"time"

	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
)

// Server is one running server. Its address stays the same whatever is done to it.
type Server struct {
	Name  string // as in Fleet.Start
	Image string
	URL   string // what a client dials
	Env   string // the RELAY_TEST_ variable that holds URL
	Port  int    // on 127.0.0.1

	spec      spec
	container testcontainers.Container
	network   string
}

// Ready returns nil once the server answers its own protocol.
func (s *Server) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		probe, done := context.WithTimeout(ctx, 3*time.Second)
		err := s.spec.ready(probe, s.URL)
		done()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			logs, _ := docker(context.WithoutCancel(ctx), "logs", "--tail", "20", s.id())
			return fmt.Errorf("%s does not answer at %s: %w\n%s", s.Name, s.URL, err, logs)
		}
	}
}

// Stop asks the server to end and waits until it has; Kill does not ask.
func (s *Server) Stop(ctx context.Context) error { return s.do(ctx, "stop", "--time", "20", s.id()) }

// Kill ends the server with SIGKILL.
func (s *Server) Kill(ctx context.Context) error { return s.do(ctx, "kill", s.id()) }

// Start starts a stopped or killed server with the data that it had.
func (s *Server) Start(ctx context.Context) error {
	if err := s.do(ctx, "start", s.id()); err != nil {
		return err
	}
	return s.Ready(ctx)
}

// Forgetful reports that the server does not come through a restart with all that a
// real one would remember.
func (s *Server) Forgetful() bool { return s.spec.forgetful }

// Restart stops the server in an orderly way and starts it again. One that is
// forgetful is disconnected from the network for a few seconds instead.
func (s *Server) Restart(ctx context.Context) error {
	if s.spec.forgetful {
		if err := s.Disconnect(ctx); err != nil {
			return err
		}
		select {
		case <-time.After(3 * time.Second):
		case <-ctx.Done():
		}
		return s.Connect(ctx)
	}
	if err := s.Stop(ctx); err != nil {
		return err
	}
	return s.Start(ctx)
}

// Pause freezes the server: connections stay open and nothing answers. The
// kernel gives up now and then when many threads are busy, so it is asked again.
func (s *Server) Pause(ctx context.Context) (err error) {
	for range 10 {
		if err = s.do(ctx, "pause", s.id()); err == nil || !strings.Contains(err.Error(), "unable to freeze") {
			return err
		}
	}
	return err
}

// Unpause ends Pause.
func (s *Server) Unpause(ctx context.Context) error { return s.do(ctx, "unpause", s.id()) }

// Disconnect cuts the server off the network; Connect joins it again.
func (s *Server) Disconnect(ctx context.Context) error {
	return s.do(ctx, "network", "disconnect", "--force", s.network, s.id())
}

// Connect ends Disconnect.
func (s *Server) Connect(ctx context.Context) error {
	if err := s.do(ctx, "network", "connect", s.network, s.id()); err != nil {
		return err
	}
	return s.Ready(ctx)
}

// Exec runs a command in the container and returns what it printed.
func (s *Server) Exec(ctx context.Context, command ...string) (string, error) {
	return docker(ctx, append([]string{"exec", s.id()}, command...)...)
}

func (s *Server) id() string { return s.container.GetContainerID() }

func (s *Server) do(ctx context.Context, args ...string) error {
	if _, err := docker(ctx, args...); err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	return nil
}

// docker runs the docker client and returns its standard output.
func docker(ctx context.Context, args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("not a TCP address")
	}
	return addr.Port, l.Close()
}

// testcontainersQuiet drops the library's running commentary; what matters it
// returns as errors.
func testcontainersQuiet() { tclog.SetDefault(log.New(discard{}, "", 0)) }

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
