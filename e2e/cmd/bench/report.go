package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
)

type report struct {
	Drains  []drainLine   `json:"drains"`
	Latency []latencyLine `json:"latency"`
	Trace   []station     `json:"trace"`
	Live    []liveLine    `json:"live"`
	Scale   []scaleLine   `json:"scale"`
	Idle    *idleLine     `json:"idle"`
	Writes  []writeLine   `json:"writes"`
}

func (r report) write(o options) error {
	fmt.Print(r.markdown(o))
	if o.json != "" {
		raw, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.json, append(raw, '\n'), 0o644); err != nil {
			return err
		}
	}
	if o.page == "" {
		return nil
	}
	page, err := os.ReadFile(o.page)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(page), pageStart)
	_, after, ok2 := strings.Cut(rest, pageEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the tables: %s … %s", o.page, pageStart, pageEnd)
	}
	return os.WriteFile(o.page, []byte(before+pageStart+"\n"+r.markdown(o)+pageEnd+after), 0o644)
}

// The tables stand between these lines of the page.
const (
	pageStart = "<!-- bench -->"
	pageEnd   = "<!-- /bench -->"
)

func (r report) markdown(o options) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Made by `make bench`: %d cores, %s, %d pairs of runs, medians. "+
		"Clients, servers and relay share the cores.\n\n", runtime.NumCPU(), runtime.Version(), o.pairs)
	b.WriteString("| drain | rows | client alone, /s | copy, /s | relay, /s | to copy (least to most) | bar " +
		"| copy to copy | to the client | relay CPU s per million | allocations per event | WAL B per event | RSS MiB |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, d := range r.Drains {
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s | %.2f | %s | %s | %.1f | %.1f | %.0f | %.0f |\n",
			d.Name, d.Rows, perSecond(d.Alone), perSecond(d.Copy), perSecond(d.Relay), &d.ToCopy, d.Bar, d.Noise, d.ToAlone,
			d.CPU, d.Allocs, d.WAL, d.RSS)
	}
	b.WriteString("\nThe client alone is: ")
	for i, d := range r.Drains {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: %s", d.Name, d.Against)
	}
	b.WriteString(".\n")
	if len(r.Latency) > 0 {
		b.WriteString("\nLatency at 1,000 rows a second, from before the INSERT to the arrival:\n\n" +
			"| what | p50 ms | p99 ms | p99.9 ms |\n|---|---|---|---|\n")
		for _, l := range r.Latency {
			fmt.Fprintf(&b, "| %s | %.2f | %.2f | %.2f |\n", l.Name, l.P50ms, l.P99ms, l.P999ms)
		}
	}
	if len(r.Trace) > 0 {
		b.WriteString(traceTable(r.Trace))
	}
	if len(r.Live) > 0 {
		b.WriteString(liveTable(r.Live))
	}
	if len(r.Scale) > 0 {
		b.WriteString("\nTo /dev/null, all rows together:\n\n" +
			"| what | base, /s | with, /s | ratio | relay CPU s per million | RSS MiB |\n|---|---|---|---|---|---|\n")
		for _, l := range r.Scale {
			fmt.Fprintf(&b, "| %s | %.0f | %.0f | **%.2f** | %.2f | %.0f |\n", l.Name, l.Base, l.Rate, l.Ratio, l.CPU, l.RSS)
		}
	}
	if r.Idle != nil {
		fmt.Fprintf(&b, "\n%d idle pipelines: relay %.2f%% of a core, PostgreSQL %.2f%%.\n",
			r.Idle.Pipelines, 100*r.Idle.Relay, 100*r.Idle.Postgres)
	}
	if len(r.Writes) > 0 {
		b.WriteString(writesTable(r.Writes))
	}
	return b.String()
}

// shortBar is the part of a bar that a short run on a busy machine must reach. It catches a
// fall and does not measure.
const shortBar = 0.7

// check returns an error that names the drains of which no pair reached the bar.
func (r report) check(short bool) error {
	var low []string
	for _, d := range r.Drains {
		bar := d.Bar
		if short {
			bar *= shortBar
		}
		if d.ToCopy.Most < bar {
			low = append(low, fmt.Sprintf("%s %.2f (bar %.2f)", d.Name, d.ToCopy.Most, bar))
		}
	}
	if len(low) > 0 {
		return fmt.Errorf("slower beside a copy than it should be: %s", strings.Join(low, ", "))
	}
	return nil
}
