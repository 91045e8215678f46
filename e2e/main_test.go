package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
)

var (
	fleet  *brokers.Fleet
	matrix Matrix
)

func TestMain(m *testing.M) {
	if os.Getenv("RELAY_E2E") != "1" {
		fmt.Println("not run: these tests start containers; make e2e runs them (RELAY_E2E=1)")
		os.Exit(0)
	}
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if fleet, err = brokers.New(ctx, brokers.Options{Large: true}); err != nil {
		return 1, err
	}
	end := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return fleet.Close(ctx)
	}
	defer func() { err = errors.Join(err, end()) }()
	defer context.AfterFunc(ctx, func() { // interrupted
		_ = end() // the process ends at once, and removeOrphans gets the rest
		os.Exit(130)
	})() // before stop, which ends ctx too
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return fleet.Start(gctx, ends.Servers(kinds())...) })
	g.Go(func() error { return build(gctx) })
	if err := g.Wait(); err != nil {
		return 1, err
	}
	code = m.Run()
	whole := flag.Lookup("test.run").Value.String() == ""
	text, complete := matrix.Table()
	fmt.Println(text)
	if whole && !complete {
		return max(code, 1), errors.New("the matrix has holes: see above")
	}
	return code, nil
}

// build makes the binaries and images of the sources as they are now.
// RELAY_E2E_BUILT=1 skips the build.
func build(ctx context.Context) error {
	if os.Getenv("RELAY_E2E_BUILT") == "1" {
		return nil
	}
	root, err := brokers.Root()
	if err != nil {
		return err
	}
	for _, command := range [][]string{{"make", "-s", "build"}, {"deploy/images.sh"}} {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, out)
		}
	}
	return nil
}

// kinds returns the backends, or those that RELAY_E2E_BACKENDS lists.
func kinds() []ends.Kind {
	only := os.Getenv("RELAY_E2E_BACKENDS")
	if only == "" {
		return ends.Kinds()
	}
	var kinds []ends.Kind
	for _, k := range ends.Kinds() {
		for name := range strings.SplitSeq(only, ",") {
			if k.Name == name {
				kinds = append(kinds, k)
			}
		}
	}
	return kinds
}
