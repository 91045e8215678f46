// Demo shows what pgtrickle-relay is for, on this machine and in under a minute:
// rows leave PostgreSQL, arrive in NATS JetStream and come back into an inbox
// table, while the relay is killed twice. It runs the real binary, needs nothing
// but Go, and leaves nothing behind.
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
	state   string        // where everything lives; given to a process without root's rights
	fetch   bool          // do not look for a local PostgreSQL
	writing time.Duration // how long the writers write
}

func main() {
	var o options
	flag.StringVar(&o.relay, "relay", "", "`path` of pgtrickle-relay; bin/pgtrickle-relay of this repository, built if need be, by default")
	flag.StringVar(&o.state, "state", "", "`directory` for everything the demo needs; a temporary one by default")
	flag.BoolVar(&o.fetch, "fetch-postgres", false, "fetch PostgreSQL even where there is one")
	flag.DurationVar(&o.writing, "writing", 8*time.Second, "how long the writers write while the relay is killed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := start(ctx, o)
	stop()
	if err != nil {
		say.failed(err)
		os.Exit(1)
	}
}

// start prepares what the demo itself may not be able to, and runs it, without
// root's rights: PostgreSQL refuses to run with them.
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
	defer os.RemoveAll(o.state) //nolint:errcheck // the last thing we do
	if os.Geteuid() == 0 {
		return runAsUser(ctx, o)
	}
	return run(ctx, o)
}

// findRelay returns the relay's binary and builds it where there is none.
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
	say.line("There is no bin/pgtrickle-relay yet; building it.")
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
		d.servers, d.migrate, d.configure, d.startRelay, d.fewRows, d.health,
		func(ctx context.Context) error { return d.storm(ctx, o.writing) },
		d.verify,
	} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			return fmt.Errorf("%w\n%s", err, d.relay.tail())
		}
	}
	say.done(time.Since(began))
	return nil
}
