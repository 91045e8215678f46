package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
)

// drain is one destination: how its own client fills it, and how the relay does.
type drain struct {
	name    string
	against string  // what the client alone does
	bar     float64 // the ratio to a copy that is wanted
	share   int     // of the rows: 1 = all, 10 = a tenth
	most    int     // upper bound of rows; 0 = no bound
	reverse bool
	// warm is how many runs precede those that count, for a server in a virtual
	// machine that compiles what it runs often.
	warm int
	// target makes a destination and returns the pipeline's keys for it, and what
	// fills it with n messages by the broker's own client.
	target func(ctx context.Context, b *bench, n int) (target, error)
}

// target is a destination that was made. Nothing of it is used twice.
type target struct {
	keys  map[string]any
	alone func(ctx context.Context) error // the client, with all messages at hand
	copy  func(ctx context.Context) error // the client, with messages as they are read
	close func()
}

// drains lists the destinations.
func drains() []drain {
	return []drain{
		{name: "stdout", against: "keyset read of the same columns, 1000 rows at a time", bar: 0.90, share: 1, target: stdoutTarget},
		{name: "nats", against: "nats.go PublishAsync with Msg-Id, best window", bar: 0.95, share: 1, target: natsTarget},
		{name: "redis", against: "pipelined XADD of 1000", bar: 0.92, share: 1, target: redisTarget},
		{name: "kafka", against: "kafka-go Writer, acks=all, batches of 10,000", bar: 0.90, share: 1, warm: 3, target: kafkaTarget},
		{name: "rabbitmq", against: "quorum queue, deferred confirms, window 1000", bar: 0.97, share: 3, target: rabbitTarget},
		{name: "webhook", against: "net/http, one request an event, 16 at once", bar: 0.92, share: 5, target: webhookTarget},
		{name: "sqs", against: "SDK SendMessageBatch, 4 at once", bar: 0.95, most: 60_000, share: 1, warm: 3, target: sqsTarget},
		{name: "pg-inbox", against: "INSERT of unnest, 1000 rows at a time", bar: 0.92, share: 3, target: inboxTarget},
		{name: "nats-to-inbox", against: "INSERT of unnest, 1000 rows at a time", bar: 0.92, share: 3, reverse: true, target: natsInboxTarget},
	}
}

// drainLine is the outcome of one drain. Rates and ratios are medians.
type drainLine struct {
	Name    string  `json:"name"`
	Against string  `json:"against"`
	Bar     float64 `json:"bar"`
	Rows    int     `json:"rows"`
	Alone   float64 `json:"raw_per_second,omitempty"`
	Copy    float64 `json:"copy_per_second"`
	Relay   float64 `json:"relay_per_second"`
	ToCopy  ratio   `json:"to_copy"`         // of the relay to the copy
	ToAlone *ratio  `json:"ratio,omitempty"` // of the relay to the client alone
	Noise   *ratio  `json:"noise,omitempty"` // of a copy to the next one
	// Of the relay process.
	CPU    float64 `json:"cpu_seconds_per_million"`
	Allocs float64 `json:"allocations_per_event"`
	WAL    float64 `json:"wal_bytes_per_event"`
	RSS    float64 `json:"rss_mib"`
}

// ratio is taken pair by pair.
type ratio struct {
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
}

func ratioOf(a, b []float64) ratio {
	each := make([]float64, len(a))
	for i := range a {
		each[i] = a[i] / b[i]
	}
	return ratio{median(each), slices.Min(each), slices.Max(each)}
}

func (r *ratio) String() string {
	if r == nil {
		return "–"
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f)", r.Median, r.Least, r.Most)
}

// perSecond is a rate, or a dash for one that was not measured.
func perSecond(rate float64) string {
	if rate == 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f", rate)
}

func (l drainLine) String() string {
	return fmt.Sprintf("bench: %-14s alone %8s/s  copy %8s/s  relay %8s/s  to copy %s, bar %.2f, noise %s  to alone %s  "+
		"%.1f CPU s/M  %.1f allocs  %.0f B WAL  %.0f MiB",
		l.Name, perSecond(l.Alone), perSecond(l.Copy), perSecond(l.Relay), &l.ToCopy, l.Bar, l.Noise, l.ToAlone, l.CPU, l.Allocs, l.WAL, l.RSS)
}

// drain runs the relay and a copy in turn and, if all is set, the client alone and another
// copy. The order changes from pair to pair, because what a run leaves in a server slows the
// next.
func (b *bench) drain(ctx context.Context, d drain, pairs int, all bool) (line drainLine, err error) {
	n := b.rows / d.share
	if d.most > 0 {
		n = min(n, d.most)
	}
	line = drainLine{Name: d.name, Against: d.against, Bar: d.bar, Rows: n}
	for range d.warm {
		if _, err := b.clientRun(ctx, d, n); err != nil {
			return line, fmt.Errorf("warm up: %w", err)
		}
	}
	sides := []string{relaySide, copySide}
	if all {
		sides = []string{aloneSide, relaySide, copySide, copyAgainSide}
	}
	rates := map[string][]float64{}
	var samples []sample
	for pair := range pairs {
		runtime.GC()
		for i := range sides {
			side := sides[(i+pair)%len(sides)]
			var rate float64
			switch side {
			case aloneSide:
				rate, err = b.clientRun(ctx, d, n)
			case relaySide:
				var s sample
				s, err = b.relayDrain(ctx, d, n)
				rate, samples = s.rate, append(samples, s)
			default:
				rate, err = b.copyRun(ctx, d, n)
			}
			if err != nil {
				return line, fmt.Errorf("%s: %w", side, err)
			}
			fmt.Fprintf(os.Stderr, "bench: %-14s %8.0f/s %s\n", d.name, rate, side)
			rates[side] = append(rates[side], rate)
		}
	}
	line.Copy, line.Relay, line.ToCopy = median(rates[copySide]), median(rates[relaySide]), ratioOf(rates[relaySide], rates[copySide])
	if all {
		toAlone, noise := ratioOf(rates[relaySide], rates[aloneSide]), ratioOf(rates[copySide], rates[copyAgainSide])
		line.Alone, line.ToAlone, line.Noise = median(rates[aloneSide]), &toAlone, &noise
	}
	line.CPU = medianOf(samples, func(s sample) float64 { return s.cpu })
	line.Allocs = medianOf(samples, func(s sample) float64 { return s.allocs })
	line.WAL = medianOf(samples, func(s sample) float64 { return s.wal })
	line.RSS = medianOf(samples, func(s sample) float64 { return s.rss })
	return line, nil
}

// The sides of a drain.
const (
	aloneSide     = "client alone"
	relaySide     = "relay"
	copySide      = "copy"
	copyAgainSide = "copy again"
)

// clientRun runs the client alone.
func (b *bench) clientRun(ctx context.Context, d drain, n int) (float64, error) {
	t, err := d.target(ctx, b, n)
	if err != nil {
		return 0, err
	}
	defer t.close()
	if err := b.load(ctx, n); err != nil {
		return 0, err
	}
	return timed(n, func() error { return t.alone(ctx) })
}

func (b *bench) relayDrain(ctx context.Context, d drain, n int) (sample, error) {
	t, err := d.target(ctx, b, n)
	if err != nil {
		return sample{}, err
	}
	defer t.close()
	if d.reverse {
		return b.relayRun(ctx, "set_relay_inbox", t.keys, n)
	}
	t.keys["stream_table"] = "bench"
	return b.relayRun(ctx, "set_relay_outbox", t.keys, n)
}

func medianOf[T any](samples []T, f func(T) float64) float64 {
	v := make([]float64, len(samples))
	for i, s := range samples {
		v[i] = f(s)
	}
	return median(v)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
