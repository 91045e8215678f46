// Bench measures the relay beside each broker's own client: the same messages
// into the same server, in turn, in one run. The client alone has all messages at
// hand and the cores to itself. A copy reads them from PostgreSQL as the relay
// does, and leaves out all that makes a relay: it is the limit on that machine.
// Bench prints medians, and ratios that are taken pair by pair, so that a machine
// whose speed drifts changes both sides.
//
// It takes its servers from the RELAY_TEST_ variables, as `make bench` sets
// them, and the relay from bin/.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	rows, pairs int
	only        string
	check       bool
	json, page  string
	latency     int
	backlog     int
	writes      int
	live        int
	beside      string
	rates       string
}

func main() {
	commands := map[string]func(context.Context, []string) error{
		endpointCommand: serveEndpoint, copyCommand: runCopy, copyKafkaCommand: copyKafka,
	}
	if len(os.Args) > 1 && commands[os.Args[1]] != nil {
		if err := commands[os.Args[1]](context.Background(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	short := flag.Bool("short", false, "a few minutes: fewer rows, one pair less; what CI runs")
	flag.IntVar(&o.rows, "rows", 300_000, "rows of a drain; slow brokers get a part of them")
	flag.IntVar(&o.pairs, "pairs", 3, "pairs of runs, raw and relay in turn")
	flag.StringVar(&o.only, "only", "", "comma-separated drains; empty means all")
	flag.BoolVar(&o.check, "check", false, "fail when no pair of a drain reaches its bar")
	flag.StringVar(&o.json, "json", "", "write the results to this file as JSON")
	flag.StringVar(&o.page, "page", "", "write the tables into this page, between its marks")
	flag.IntVar(&o.latency, "latency", 20, "seconds of the latency measurement at 1,000 rows a second; 0 leaves it out")
	flag.IntVar(&o.backlog, "backlog", 10_000_000, "rows of the long backlog; 0 leaves it out, and pipelines side by side")
	flag.IntVar(&o.writes, "writes", 9, "rounds of the measurement of writers; 0 leaves it out")
	flag.IntVar(&o.live, "live", 10, "seconds of each measurement at a steady rate; 0 leaves it out")
	flag.StringVar(&o.rates, "rates", "100,1000,10000", "rows a second of the measurements at a steady rate")
	flag.StringVar(&o.beside, "beside", "", "another relay's binary to measure in turn at a steady rate")
	flag.Parse()
	if *short {
		o.rows, o.pairs, o.latency, o.backlog, o.writes, o.live = 200_000, 2, 5, 0, 3, 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, *short); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, short bool) error {
	var r report
	var names []string
	if o.only != "" {
		names = strings.Split(o.only, ",")
	}
	wanted := func(name string) bool { return len(names) == 0 || slices.Contains(names, name) }

	b, err := newBench(ctx, o.rows)
	if err != nil {
		return err
	}
	defer b.close()
	for _, d := range drains() {
		if !wanted(d.name) {
			continue
		}
		line, err := b.drain(ctx, d, o.pairs, !short)
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		r.Drains = append(r.Drains, line)
		fmt.Fprintln(os.Stderr, line)
	}
	if o.latency > 0 && wanted("latency") {
		if r.Latency, err = b.latency(ctx, o.latency); err != nil {
			return fmt.Errorf("latency: %w", err)
		}
	}
	if !short && wanted("trace") {
		if r.Trace, err = b.trace(ctx); err != nil {
			return fmt.Errorf("trace: %w", err)
		}
	}
	if o.live > 0 && wanted("live") {
		relay, err := binary()
		if err != nil {
			return err
		}
		relays := []string{relay}
		if o.beside != "" {
			relays = []string{o.beside, relay}
		}
		if r.Live, err = b.live(ctx, relays, o); err != nil {
			return fmt.Errorf("live: %w", err)
		}
	}
	if o.backlog > 0 && wanted("scale") {
		if r.Scale, err = b.scale(ctx, o.backlog, o.pairs); err != nil {
			return fmt.Errorf("scale: %w", err)
		}
	}
	if wanted("types") {
		line, err := b.types(ctx, o.pairs)
		if err != nil {
			return fmt.Errorf("types: %w", err)
		}
		r.Scale = append(r.Scale, line)
	}
	if wanted("idle") {
		if r.Idle, err = b.idle(ctx, 100, short); err != nil {
			return fmt.Errorf("idle: %w", err)
		}
	}
	if o.writes > 0 && wanted("writes") {
		each, bulk := 2*time.Second, 100_000
		if short {
			each, bulk = 500*time.Millisecond, 20_000
		}
		if r.Writes, err = b.writes(ctx, o.writes, each, bulk); err != nil {
			return fmt.Errorf("writes: %w", err)
		}
	}
	if err := r.write(o); err != nil {
		return err
	}
	if o.check {
		return r.check(short)
	}
	return nil
}
