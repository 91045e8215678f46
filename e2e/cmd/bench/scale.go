package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// scaleLine reports the rate with more rows or more pipelines, beside the base.
type scaleLine struct {
	Name  string  `json:"name"`
	Base  float64 `json:"base_per_second"`
	Rate  float64 `json:"per_second"`
	Ratio float64 `json:"ratio"`
	CPU   float64 `json:"cpu_seconds_per_million"` // of the relay process
	RSS   float64 `json:"rss_mib"`
}

// scale drains a long backlog beside a short one, and four pipelines beside one,
// all to /dev/null.
func (b *bench) scale(ctx context.Context, backlog, pairs int) ([]scaleLine, error) {
	const short = 100_000
	for name, rows := range map[string]int{"short": short, "long": backlog} {
		fmt.Fprintf(os.Stderr, "bench: filling an outbox with %d rows\n", rows)
		if err := b.fill(ctx, name, rows); err != nil {
			return nil, err
		}
	}
	var shorts, longs []sample
	for range pairs {
		s, err := b.relayRun(ctx, "set_relay_outbox", devNull("short"), short)
		if err != nil {
			return nil, fmt.Errorf("short backlog: %w", err)
		}
		l, err := b.relayRun(ctx, "set_relay_outbox", devNull("long"), backlog)
		if err != nil {
			return nil, fmt.Errorf("long backlog: %w", err)
		}
		shorts, longs = append(shorts, s), append(longs, l)
	}
	lines := []scaleLine{compare(fmt.Sprintf("backlog of %d rows beside one of %d", backlog, short), shorts, longs)}

	var ones, fours []sample
	for range pairs {
		one, err := b.sideBySide(ctx, 1)
		if err != nil {
			return nil, fmt.Errorf("one pipeline: %w", err)
		}
		four, err := b.sideBySide(ctx, 4)
		if err != nil {
			return nil, fmt.Errorf("four pipelines: %w", err)
		}
		ones, fours = append(ones, one), append(fours, four)
	}
	lines = append(lines, compare("4 pipelines together beside one", ones, fours))
	for _, l := range lines {
		fmt.Fprintf(os.Stderr, "bench: %s: %.0f/s, %.0f/s, ratio %.2f, %.2f CPU s/M, %.0f MiB\n", l.Name, l.Base, l.Rate, l.Ratio, l.CPU, l.RSS)
	}
	return lines, nil
}

// types drains the bench's outbox, whose payload is json, beside a copy whose payload is
// jsonb, as outboxes of earlier releases have it.
func (b *bench) types(ctx context.Context, pairs int) (line scaleLine, err error) {
	if err := b.fill(ctx, "jsonb", b.rows); err != nil {
		return line, err
	}
	for _, sql := range []string{
		`ALTER TABLE pgtrickle.outbox_jsonb ALTER COLUMN payload TYPE jsonb`, `VACUUM ANALYZE pgtrickle.outbox_jsonb`, `CHECKPOINT`,
	} {
		if _, err := b.pool.Exec(ctx, sql); err != nil {
			return line, fmt.Errorf("%s: %w", sql, err)
		}
	}
	tables := []string{"jsonb", "bench"}
	samples := make(map[string][]sample)
	for pair := range pairs {
		for i := range tables { // in turn: a machine's speed drifts
			table := tables[(i+pair)%2]
			s, err := b.relayRun(ctx, "set_relay_outbox", devNull(table), b.rows)
			if err != nil {
				return line, fmt.Errorf("%s: %w", table, err)
			}
			fmt.Fprintf(os.Stderr, "bench: types %s %.0f/s\n", table, s.rate)
			samples[table] = append(samples[table], s)
		}
	}
	line = compare("an outbox of json beside one of jsonb", samples["jsonb"], samples["bench"])
	var text, binary []float64
	for i := range pairs {
		text, binary = append(text, samples["bench"][i].rate), append(binary, samples["jsonb"][i].rate)
	}
	ratio := ratioOf(text, binary)
	line.Ratio = ratio.Median
	fmt.Fprintf(os.Stderr, "bench: %s: ratio %s\n", line.Name, &ratio)
	return line, nil
}

func devNull(table string) map[string]any {
	return map[string]any{"stream_table": table, "sink_type": "stdout", "stdout_path": "/dev/null"}
}

// fill makes an outbox with so many rows.
func (b *bench) fill(ctx context.Context, table string, rows int) error {
	for _, sql := range []string{
		`CREATE TABLE public.` + table + ` (id bigint PRIMARY KEY)`,
		`SELECT pgtrickle.enable_outbox('public.` + table + `')`,
		fmt.Sprintf(`INSERT INTO pgtrickle.outbox_%s (inserted_count, payload)
			SELECT 1, %s FROM generate_series(1, %d) n`, table, eventPayload, rows),
		`VACUUM ANALYZE pgtrickle.outbox_` + table,
		`CHECKPOINT`,
	} {
		if _, err := b.pool.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// sideBySide drains the bench's outbox by so many pipelines of one relay at once.
func (b *bench) sideBySide(ctx context.Context, pipelines int) (s sample, err error) {
	group := b.name()
	p, err := startRelay(ctx, b.url, group)
	if err != nil {
		return s, err
	}
	defer p.stop()
	before, err := p.cost(ctx)
	if err != nil {
		return s, err
	}
	names := make([]string, pipelines)
	for i := range names {
		names[i] = fmt.Sprintf("%s_%d", group, i)
		if err := b.enable(ctx, "set_relay_outbox", names[i], devNull("bench")); err != nil {
			return s, err
		}
	}
	done := 0.0
	_, began, err := p.waitPublished(ctx, names[pipelines-1], 1)
	if err != nil {
		return s, err
	}
	for _, name := range names {
		n, err := p.metric(ctx, "pgtrickle_relay_messages_published_total", `pipeline="`+name+`"`)
		if err != nil {
			return s, err
		}
		done += n
	}
	var ended time.Time
	for _, name := range names {
		if _, ended, err = p.waitPublished(ctx, name, float64(b.rows)); err != nil {
			return s, err
		}
	}
	after, err := p.cost(ctx)
	if err != nil {
		return s, err
	}
	for _, name := range names {
		if _, err := b.pool.Exec(ctx, `SELECT pgtrickle.delete_relay($1)`, name); err != nil {
			return s, err
		}
	}
	total := float64(b.rows * pipelines)
	s.elapsed = ended.Sub(began)
	s.rate = (total - done) / s.elapsed.Seconds()
	s.cpu = (after.cpu - before.cpu) / total * 1e6
	s.rss = after.rss
	return s, nil
}

func compare(name string, base, with []sample) scaleLine {
	rate := func(s sample) float64 { return s.rate }
	l := scaleLine{Name: name, Base: medianOf(base, rate), Rate: medianOf(with, rate)}
	l.Ratio = l.Rate / l.Base
	l.CPU = medianOf(with, func(s sample) float64 { return s.cpu })
	l.RSS = medianOf(with, func(s sample) float64 { return s.rss })
	return l
}
