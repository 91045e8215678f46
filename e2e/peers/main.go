// Peers measures the relay beside other programs that carry rows from PostgreSQL to
// Kafka: the same rows, servers and machine, in turn, in one run. It prints medians
// in one table, marks the best of each line, and fails if a program is missing or
// stops.
//
// It takes its servers from the RELAY_TEST_ variables, as `make bench-peers` sets
// them, and the programs from the folder that build.sh fills.
package main

import (
	"context"
	"errors"
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
	bin, relay, page  string
	rows, long, pairs int
	span, limit       time.Duration
	only              string
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "", "the folder that build.sh filled")
	flag.StringVar(&o.relay, "relay", "", "the relay's binary")
	flag.StringVar(&o.page, "page", "", "write the table into this page, between its marks")
	flag.IntVar(&o.rows, "rows", 300_000, "rows of a drain, and of a drain that is killed")
	flag.IntVar(&o.long, "long", 1_200_000, "rows of a long drain; 0 leaves it out")
	flag.IntVar(&o.pairs, "pairs", 3, "rounds; the programs take turns in each")
	flag.DurationVar(&o.span, "span", 20*time.Second, "length of each measurement with writers")
	flag.DurationVar(&o.limit, "limit", 2*time.Minute, "end of a drain that takes longer; its rate so far counts; twice that for kill -9")
	flag.StringVar(&o.only, "only", "", "comma-separated programs; empty means all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	var able []peer
	for _, p := range peers(o) {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), p.name) {
			continue
		}
		b.results.peers = append(b.results.peers, p.name)
		_, err := os.Stat(p.program)
		if err == nil && p.needs != "" {
			_, err = os.Stat(p.needs)
		}
		if err != nil {
			b.results.fail(p.name, "start", fmt.Errorf("find the program: %w; see the output of build.sh", err))
			continue
		}
		able = append(able, p)
	}
	if b.results.versions, err = b.versions(ctx, able); err != nil {
		return err
	}
	if err := b.warm(ctx, able); err != nil {
		return err
	}
	for range o.pairs {
		for _, m := range b.measures() {
			for _, p := range able {
				if m.rows < 0 || !p.takesPart(m) {
					continue
				}
				fmt.Fprintf(os.Stderr, "peers: %s, %s\n", m.name, p.name)
				if err := b.measure(ctx, m, p); err != nil {
					b.results.fail(p.name, m.name, err)
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
		}
	}
	text := b.results.markdown(o)
	fmt.Print(text)
	var failed error
	if len(b.results.failures) > 0 {
		failed = errors.New("not every program was measured whole: " + strings.Join(b.results.failures, "; "))
	}
	if o.page == "" {
		return failed
	}
	return errors.Join(failed, writePage(o.page, text))
}

// warm lets the first program drain a few times without a record: the broker is a JVM,
// which is slow when it has just started.
func (b *bench) warm(ctx context.Context, able []peer) error {
	m := b.measures()[0]
	i := slices.IndexFunc(able, func(p peer) bool { return p.takesPart(m) })
	if i < 0 {
		return errors.New("there is no program to measure")
	}
	for range 3 {
		if err := b.measure(ctx, m, able[i]); err != nil {
			return fmt.Errorf("warm up with %s: %w", able[i].name, err)
		}
	}
	b.results.lines = nil
	return nil
}

// measure is one measurement of each program.
type measure struct {
	name string
	rows int  // the backlog; none if 0, left out if negative
	all  bool // programs that only drain take part, or the writers alone
	do   func(context.Context, *job, measure) error
}

func (b *bench) measures() []measure {
	long := b.o.long
	if long == 0 {
		long = -1
	}
	return []measure{
		{fmt.Sprintf("drain of %d rows", b.o.rows), b.o.rows, true, b.drain},
		{fmt.Sprintf("drain of %d rows", b.o.long), long, true, b.drain},
		{"1,000 rows/s", 0, true, b.steady},
		{"writers flat out", 0, true, b.flat},
		{"commits out of order", 0, false, b.trap},
		{fmt.Sprintf("kill -9 in a drain of %d rows", b.o.rows), b.o.rows, false, b.kill},
	}
}

// measure gives the program a database and a topic of its own, and a backlog.
func (b *bench) measure(ctx context.Context, m measure, p peer) (err error) {
	j, err := b.newJob(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.close(ctx)) }()
	if err := j.load(ctx, m.rows); err != nil {
		return fmt.Errorf("load %d rows: %w", m.rows, err)
	}
	if err := m.do(ctx, j, m); err != nil {
		return fmt.Errorf("%w\n%s", err, j.logTail())
	}
	return nil
}
