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
	against string  // what the ratio is taken against
	floor   float64 // the least ratio that is good enough
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

type target struct {
	keys  map[string]any
	raw   func(ctx context.Context) error
	close func()
}

// drains lists the destinations. Two floors are lower than the goal of 0.9:
//
//   - stdout: since outboxes hold json, the client alone reads 800,000 rows a second
//     where it read 410,000, and the relay 500,000 where it wrote 400,000.
//   - webhook: net/http alone costs the client 20 of its 24 microseconds an event, and
//     PostgreSQL and the relay share the cores with it.
func drains() []drain {
	return []drain{
		{name: "stdout", against: "keyset read of the same columns, 1000 rows at a time", floor: 0.55, share: 1, target: stdoutTarget},
		{name: "nats", against: "nats.go PublishAsync with Msg-Id, best window", floor: 0.95, share: 1, target: natsTarget},
		{name: "redis", against: "pipelined XADD of 1000", floor: 0.65, share: 1, target: redisTarget},
		{name: "kafka", against: "kafka-go Writer, acks=all, batches of 10,000", floor: 0.61, share: 1, warm: 3, target: kafkaTarget},
		{name: "rabbitmq", against: "quorum queue, deferred confirms, window 1000", floor: 0.85, share: 3, target: rabbitTarget},
		{name: "webhook", against: "net/http, one request an event, 16 at once", floor: 0.63, share: 5, target: webhookTarget},
		{name: "sqs", against: "SDK SendMessageBatch, 4 at once", floor: 0.9, most: 60_000, share: 1, warm: 3, target: sqsTarget},
		{name: "pg-inbox", against: "INSERT of unnest, 1000 rows at a time", floor: 0.88, share: 3, target: inboxTarget},
		{name: "nats-to-inbox", against: "INSERT of unnest, 1000 rows at a time", floor: 0.85, share: 3, reverse: true, target: natsInboxTarget},
	}
}

// drainLine is the outcome of one drain.
type drainLine struct {
	Name    string  `json:"name"`
	Against string  `json:"against"`
	Floor   float64 `json:"floor"`
	Rows    int     `json:"rows"`
	// Medians.
	Raw   float64 `json:"raw_per_second"`
	Relay float64 `json:"relay_per_second"`
	Ratio float64 `json:"ratio"`
	// Spread of the ratio.
	Least float64 `json:"least_ratio"`
	Most  float64 `json:"most_ratio"`
	// Of the relay process.
	CPU    float64 `json:"cpu_seconds_per_million"`
	Allocs float64 `json:"allocations_per_event"`
	WAL    float64 `json:"wal_bytes_per_event"`
	RSS    float64 `json:"rss_mib"`
}

func (l drainLine) String() string {
	return fmt.Sprintf("bench: %-14s raw %8.0f/s  relay %8.0f/s  ratio %.2f (%.2f to %.2f, floor %.2f)  "+
		"%.1f CPU s/M  %.1f allocs  %.0f B WAL  %.0f MiB",
		l.Name, l.Raw, l.Relay, l.Ratio, l.Least, l.Most, l.Floor, l.CPU, l.Allocs, l.WAL, l.RSS)
}

// drain runs raw and relay in turn, every other time in the other order.
func (b *bench) drain(ctx context.Context, d drain, pairs int) (line drainLine, err error) {
	n := b.rows / d.share
	if d.most > 0 {
		n = min(n, d.most)
	}
	line = drainLine{Name: d.name, Against: d.against, Floor: d.floor, Rows: n}
	var raws, relays, ratios []float64
	var samples []sample
	for range d.warm {
		if _, err := b.rawRun(ctx, d, n); err != nil {
			return line, fmt.Errorf("warm up: %w", err)
		}
	}
	for pair := range pairs {
		raw, s, err := b.both(ctx, d, n, pair%2 == 1)
		if err != nil {
			return line, err
		}
		fmt.Fprintf(os.Stderr, "bench: %-14s %8.0f/s raw, %8.0f/s relay\n", d.name, raw, s.rate)
		raws, relays, ratios = append(raws, raw), append(relays, s.rate), append(ratios, s.rate/raw)
		samples = append(samples, s)
	}
	line.Raw, line.Relay, line.Ratio = median(raws), median(relays), median(ratios)
	line.Least, line.Most = slices.Min(ratios), slices.Max(ratios)
	line.CPU = medianOf(samples, func(s sample) float64 { return s.cpu })
	line.Allocs = medianOf(samples, func(s sample) float64 { return s.allocs })
	line.WAL = medianOf(samples, func(s sample) float64 { return s.wal })
	line.RSS = medianOf(samples, func(s sample) float64 { return s.rss })
	return line, nil
}

// both runs the client alone and the relay, in either order: what the first leaves
// behind in a server slows the second.
func (b *bench) both(ctx context.Context, d drain, n int, relayFirst bool) (raw float64, s sample, err error) {
	runtime.GC()
	sides := []string{"raw", "relay"}
	if relayFirst {
		slices.Reverse(sides)
	}
	for _, side := range sides {
		if side == "raw" {
			raw, err = b.rawRun(ctx, d, n)
		} else {
			s, err = b.relayDrain(ctx, d, n)
		}
		if err != nil {
			return 0, s, fmt.Errorf("%s: %w", side, err)
		}
	}
	return raw, s, nil
}

func (b *bench) rawRun(ctx context.Context, d drain, n int) (float64, error) {
	t, err := d.target(ctx, b, n)
	if err != nil {
		return 0, err
	}
	defer t.close()
	return timed(n, func() error { return t.raw(ctx) })
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
