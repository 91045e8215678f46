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

// target is a destination that was made. Nothing of it is used twice.
type target struct {
	keys  map[string]any
	alone func(ctx context.Context) error // the client, with all messages at hand
	copy  func(ctx context.Context) error // the client, with messages as they are read
	close func()
}

// drains lists the destinations. A floor is 0.05 below the median that was measured, where
// the goal of 0.9 cannot be reached:
//
//   - stdout: since outboxes hold json, the client alone reads 800,000 rows a second
//     where it read 410,000. A copy has 0.7 of that.
//   - nats and nats-to-inbox: a copy has 0.8 of the client alone, and the relay as much.
//   - webhook and sqs: the clients alone cost 20 and 30 microseconds an event, and
//     PostgreSQL and the relay share the cores with them.
func drains() []drain {
	return []drain{
		{name: "stdout", against: "keyset read of the same columns, 1000 rows at a time", floor: 0.55, share: 1, target: stdoutTarget},
		{name: "nats", against: "nats.go PublishAsync with Msg-Id, best window", floor: 0.76, share: 1, target: natsTarget},
		{name: "redis", against: "pipelined XADD of 1000", floor: 0.65, share: 1, target: redisTarget},
		{name: "kafka", against: "kafka-go Writer, acks=all, batches of 10,000", floor: 0.61, share: 1, warm: 3, target: kafkaTarget},
		{name: "rabbitmq", against: "quorum queue, deferred confirms, window 1000", floor: 0.85, share: 3, target: rabbitTarget},
		{name: "webhook", against: "net/http, one request an event, 16 at once", floor: 0.70, share: 5, target: webhookTarget},
		{name: "sqs", against: "SDK SendMessageBatch, 4 at once", floor: 0.82, most: 60_000, share: 1, warm: 3, target: sqsTarget},
		{name: "pg-inbox", against: "INSERT of unnest, 1000 rows at a time", floor: 0.88, share: 3, target: inboxTarget},
		{name: "nats-to-inbox", against: "INSERT of unnest, 1000 rows at a time", floor: 0.75, share: 3, reverse: true, target: natsInboxTarget},
	}
}

// drainLine is the outcome of one drain. Rates and ratios are medians.
type drainLine struct {
	Name    string  `json:"name"`
	Against string  `json:"against"`
	Floor   float64 `json:"floor"`
	Rows    int     `json:"rows"`
	Alone   float64 `json:"raw_per_second"`
	Copy    float64 `json:"copy_per_second,omitempty"`
	Relay   float64 `json:"relay_per_second"`
	Ratio   ratio   `json:"ratio"`             // of the relay to the client alone
	ToCopy  *ratio  `json:"to_copy,omitempty"` // of the relay to the copy
	Noise   *ratio  `json:"noise,omitempty"`   // of a copy to the next one
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
		return ""
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f)", r.Median, r.Least, r.Most)
}

func (l drainLine) String() string {
	return fmt.Sprintf("bench: %-14s alone %8.0f/s  copy %8.0f/s  relay %8.0f/s  to alone %s, floor %.2f  to copy %s, noise %s  "+
		"%.1f CPU s/M  %.1f allocs  %.0f B WAL  %.0f MiB",
		l.Name, l.Alone, l.Copy, l.Relay, &l.Ratio, l.Floor, l.ToCopy, l.Noise, l.CPU, l.Allocs, l.WAL, l.RSS)
}

// drain runs the client alone, the relay and, if copies is set, two copies in turn. The
// order changes from pair to pair, because what a run leaves in a server slows the next.
func (b *bench) drain(ctx context.Context, d drain, pairs int, copies bool) (line drainLine, err error) {
	n := b.rows / d.share
	if d.most > 0 {
		n = min(n, d.most)
	}
	line = drainLine{Name: d.name, Against: d.against, Floor: d.floor, Rows: n}
	for range d.warm {
		if _, err := b.clientRun(ctx, d, n); err != nil {
			return line, fmt.Errorf("warm up: %w", err)
		}
	}
	sides := []string{aloneSide, relaySide}
	if copies {
		sides = append(sides, copySide, copyAgainSide)
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
	line.Alone, line.Relay, line.Ratio = median(rates[aloneSide]), median(rates[relaySide]), ratioOf(rates[relaySide], rates[aloneSide])
	if copies {
		toCopy, noise := ratioOf(rates[relaySide], rates[copySide]), ratioOf(rates[copySide], rates[copyAgainSide])
		line.Copy, line.ToCopy, line.Noise = median(rates[copySide]), &toCopy, &noise
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
