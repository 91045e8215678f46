package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
)

// settings are the CHAOS_ variables.
type settings struct {
	seed     uint64
	duration time.Duration // of the storm
	kills    int           // of TestKills
	backlog  int           // small messages of TestMemory
	write    bool          // the table into docs/guarantees.md
	backends []ends.Kind
}

var (
	fleet *brokers.Fleet
	set   settings
	table report
)

func TestMain(m *testing.M) {
	if os.Getenv("RELAY_CHAOS") != "1" {
		fmt.Println("not run: these tests break servers for minutes; make chaos runs them (RELAY_CHAOS=1)")
		os.Exit(0)
	}
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if set, err = readSettings(); err != nil {
		return 2, err
	}
	fmt.Printf("chaos: seed %d; CHAOS_SEED=%d repeats the schedule\n", set.seed, set.seed)
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
		_ = end() // the process ends at once; the next run removes the rest
		os.Exit(130)
	})() // before stop, which ends ctx too
	if err := fleet.Start(ctx, ends.Servers(set.backends)...); err != nil {
		return 1, err
	}
	code = m.Run()
	fmt.Println(table.text())
	if set.write {
		return code, table.writeTo("docs/guarantees.md")
	}
	return code, nil
}

func readSettings() (s settings, err error) {
	number := func(name string, fallback float64) float64 {
		text := os.Getenv(name)
		if text == "" {
			return fallback
		}
		n, perr := strconv.ParseFloat(text, 64)
		if perr != nil {
			err = errors.Join(err, fmt.Errorf("%s=%s: want a number", name, text))
		}
		return n
	}
	s = settings{
		seed:     uint64(number("CHAOS_SEED", float64(rand.Uint32()))),
		duration: time.Duration(number("CHAOS_MINUTES", 1) * float64(time.Minute)),
		kills:    int(number("CHAOS_KILLS", 25)),
		backlog:  int(number("CHAOS_BACKLOG", 200_000)),
		write:    os.Getenv("CHAOS_WRITE") == "1",
	}
	for _, k := range ends.Kinds() {
		if only := os.Getenv("CHAOS_BACKENDS"); only == "" || strings.Contains(","+only+",", ","+k.Name+",") {
			s.backends = append(s.backends, k)
		}
	}
	return s, err
}
