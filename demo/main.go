// Demo shows what pgtrickle-relay does, on this machine and in under a minute. Rows
// leave PostgreSQL, arrive in NATS JetStream and return into an inbox table, while
// the relay is killed twice. It runs the real binary, needs only Go, and removes
// everything at the end.
//
//	go run ./demo            from the repository, or
//	make demo
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

type options struct {
	relay   string        // the relay's binary
	state   string        // directory of all files; set for the process that runs without root's rights
	fetch   bool          // fetch PostgreSQL even if one is installed
	writing time.Duration // how long the writers write
}

func main() {
	var o options
	flag.StringVar(&o.relay, "relay", "", "`path` of pgtrickle-relay; default: bin/pgtrickle-relay of this repository, built if missing")
	flag.StringVar(&o.state, "state", "", "`directory` for all files of the demo; default: a temporary one")
	flag.BoolVar(&o.fetch, "fetch-postgres", false, "fetch PostgreSQL even if one is installed")
	flag.DurationVar(&o.writing, "writing", 8*time.Second, "how long the writers write while the relay is killed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := start(ctx, o)
	stop()
	if err != nil {
		show.failed(err)
		os.Exit(1)
	}
}

// start builds the relay, creates the directory and runs the demo. PostgreSQL refuses
// to run as root, so the demo then runs as another user.
func start(ctx context.Context, o options) error {
	if o.state != "" {
		return run(ctx, o)
	}
	var err error
	if o.relay, err = findRelay(ctx, o.relay); err != nil {
		return err
	}
	if o.state, err = os.MkdirTemp("", "pgtrickle-demo-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.state) //nolint:errcheck // nothing follows
	if os.Geteuid() == 0 {
		return runAsUser(ctx, o)
	}
	return run(ctx, o)
}

// findRelay returns the relay's binary. It builds the default one if that is missing.
func findRelay(ctx context.Context, path string) (string, error) {
	if path != "" {
		return filepath.Abs(path)
	}
	_, source, _, _ := runtime.Caller(0)
	repo := filepath.Dir(filepath.Dir(source))
	path = filepath.Join(repo, "bin", "pgtrickle-relay")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	show.line("There is no bin/pgtrickle-relay yet; building it.")
	build := exec.CommandContext(ctx, "go", "build", "-o", path, ".")
	build.Dir = filepath.Join(repo, "relay-all")
	build.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("build pgtrickle-relay: %w", err)
	}
	return path, nil
}

// run is the demo.
func run(ctx context.Context, o options) (err error) {
	began := time.Now()
	pg, err := startPostgres(ctx, filepath.Join(o.state, "postgres"), o.fetch)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pg.stop()) }()
	broker, err := startBroker(ctx, filepath.Join(o.state, "nats"))
	if err != nil {
		return err
	}
	defer broker.stop()
	d := &demo{relay: &relayProcess{binary: o.relay, log: filepath.Join(o.state, "relay.log")}, pg: pg, broker: broker}
	defer d.relay.kill()
	defer d.close()
	for _, step := range []func(context.Context) error{
		d.servers, d.migrate, d.configure, d.startRelay, d.followRows, d.health,
		func(ctx context.Context) error { return d.writeAndKill(ctx, o.writing) },
		d.compare,
	} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			return fmt.Errorf("%w\n%s", err, d.relay.tail())
		}
	}
	show.done(time.Since(began))
	return nil
}
