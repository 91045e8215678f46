// With-brokers starts servers in containers, runs a command with their addresses
// in RELAY_TEST_ variables, ends the servers, and exits as the command did.
//
//	go run ./cmd/with-brokers nats kafka pg18 -- go test ./...
//
// "all" stands for every server. A name may carry the host port that it is to
// have: nats=4222. Without a command it prints the variables and serves until it
// is interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
)

func main() {
	large := flag.Bool("large", false, "raise the servers' message size limits to 8 MiB")
	flag.Usage = func() {
		fmt.Fprintf(os.Stderr, "usage: with-brokers [-large] NAME[=PORT]... [-- COMMAND [ARG]...]\n"+
			"names: all, %s\n", strings.Join(brokers.Names(), ", "))
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code, err := run(ctx, *large, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "with-brokers:", err)
	}
	os.Exit(code)
}

func run(ctx context.Context, large bool, args []string) (code int, err error) {
	names, command, ports := args, []string(nil), make(map[string]int)
	if i := slices.Index(args, "--"); i >= 0 {
		names, command = args[:i], args[i+1:]
	}
	if slices.Contains(names, "all") {
		names = brokers.Names()
	}
	names = slices.Clone(names)
	for i, arg := range names {
		name, port, ok := strings.Cut(arg, "=")
		if !ok {
			continue
		}
		if ports[name], err = strconv.Atoi(port); err != nil {
			return 2, fmt.Errorf("%s: %w", arg, err)
		}
		names[i] = name
	}
	fleet, err := brokers.New(ctx, brokers.Options{Large: large, Ports: ports})
	if err != nil {
		return 1, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if cerr := fleet.Close(ctx); cerr != nil {
			code, err = max(code, 1), errors.Join(err, cerr)
		}
	}()
	if err := fleet.Start(ctx, names...); err != nil {
		return 1, err
	}
	env := append(fleet.Environ(), "RELAY_TEST_REQUIRE=1")
	if command == nil {
		for _, v := range env {
			fmt.Println("export " + v)
		}
		<-ctx.Done()
		return 0, nil
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), env...)
	// The command gets the signal too, and time to end by itself.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}
