package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// The better direction of a line.
const (
	more = true
	less = false
)

type line struct {
	name string
	more bool
	runs map[string][]float64 // by program, a figure a round
}

type results struct {
	peers    []string
	lines    []*line
	failures []string
	versions string
	load     string // of the machine, before the run
}

func (r *results) add(name string, better bool, j *job, v float64) {
	i := slices.IndexFunc(r.lines, func(l *line) bool { return l.name == name })
	if i < 0 {
		i = len(r.lines)
		r.lines = append(r.lines, &line{name: name, more: better, runs: make(map[string][]float64)})
	}
	r.lines[i].runs[j.peer.name] = append(r.lines[i].runs[j.peer.name], v)
	fmt.Fprintf(os.Stderr, "peers:   %s: %s\n", name, figure(v))
}

func (r *results) fail(peer, what string, err error) {
	fmt.Fprintf(os.Stderr, "peers: %s, %s: %v\n", what, peer, err)
	first, _, _ := strings.Cut(err.Error(), "\n")
	r.failures = append(r.failures, fmt.Sprintf("%s, %s: %s", peer, what, first))
}

// markdown returns the table. The best of each line is in bold; a limit and the writers
// alone do not compete.
func (r *results) markdown(o options) string {
	var order []string // measurements, as they were made
	measure := func(l *line) string { name, _, _ := strings.Cut(l.name, ":"); return name }
	for _, l := range r.lines {
		order = append(order, measure(l))
	}
	slices.SortStableFunc(r.lines, func(a, b *line) int { return slices.Index(order, measure(a)) - slices.Index(order, measure(b)) })
	var b strings.Builder
	b.WriteString(wrapped(fmt.Sprintf("Made by `make bench-peers`: %d cores, load average before it %s, rounds: %d, medians (least to most), "+
		"drains ended after %s, writers for %s. Bold is the best of a line; the copy and the writers alone do not compete.",
		runtime.NumCPU(), r.load, o.pairs, o.limit, o.span)))
	b.WriteString("\n" + wrapped(r.versions) + "\n")
	fmt.Fprintf(&b, "| what | %s |\n|---%s|\n", strings.Join(r.peers, " | "), strings.Repeat("|---", len(r.peers)))
	for _, l := range r.lines {
		b.WriteString("| " + l.name)
		best := l.best()
		for _, p := range r.peers {
			cell := "–"
			if v := l.runs[p]; len(v) > 0 {
				cell = figure(median(v))
				if slices.Contains(best, p) {
					cell = "**" + cell + "**"
				}
				if len(v) > 1 {
					cell += fmt.Sprintf(" (%s to %s)", figure(slices.Min(v)), figure(slices.Max(v)))
				}
			}
			b.WriteString(" | " + cell)
		}
		b.WriteString(" |\n")
	}
	for _, f := range r.failures {
		b.WriteString("\n" + wrapped("Failed: "+f))
	}
	return b.String()
}

// wrapped returns the text in lines of at most 100 columns.
func wrapped(text string) string {
	var b strings.Builder
	width := 0
	for word := range strings.FieldsSeq(text) {
		if width > 0 && width+1+len(word) > 100 {
			b.WriteByte('\n')
			width = 0
		} else if width > 0 {
			b.WriteByte(' ')
			width++
		}
		b.WriteString(word)
		width += len(word)
	}
	return b.String() + "\n"
}

// best returns the programs with the best figure, none if all have the same.
func (l *line) best() (names []string) {
	var top float64
	competing := 0
	for p, v := range l.runs {
		if p == "copy" || p == "nothing" {
			continue
		}
		m := median(v)
		switch competing++; {
		case len(names) > 0 && figure(m) == figure(top):
			names = append(names, p)
		case len(names) == 0, l.more && m > top, !l.more && m < top:
			names, top = []string{p}, m
		}
	}
	if len(names) == competing {
		return nil
	}
	return names
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func figure(v float64) string {
	switch {
	case v == float64(int(v)) || v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// versions returns the versions of the servers and programs.
func (b *bench) versions(ctx context.Context, able []peer) (string, error) {
	var server string
	if err := b.admin.QueryRow(ctx, `SHOW server_version`).Scan(&server); err != nil {
		return "", err
	}
	names, err := exec.CommandContext(ctx, "docker", "exec", b.kafkaID, "ls", "/opt/kafka/libs").Output()
	if err != nil {
		return "", fmt.Errorf("list Kafka's jars: %w", err)
	}
	parts := []string{"PostgreSQL " + server, "Kafka " + match(`kafka-clients-([\d.]+\d)`, string(names))}
	for _, p := range able {
		switch {
		case p.dir != "":
			java, err := exec.CommandContext(ctx, p.needs, "--version").Output()
			if err != nil {
				return "", fmt.Errorf("%s: %w", p.needs, err)
			}
			jvm, _, _ := strings.Cut(string(java), "\n")
			jars, err := filepath.Glob(filepath.Join(p.dir, "*-runner.jar"))
			if err != nil {
				return "", err
			}
			if len(jars) != 1 {
				return "", fmt.Errorf("find the runner of %s: there are %d, want one; see the output of build.sh", p.dir, len(jars))
			}
			parts = append(parts, strings.TrimSuffix(filepath.Base(jars[0]), "-runner.jar")+" on "+jvm)
		case p.program == b.o.relay:
			if p.name != "relay (trigger)" {
				continue
			}
			text, err := exec.CommandContext(ctx, p.program, "version").Output()
			if err != nil {
				return "", fmt.Errorf("%s version: %w", p.program, err)
			}
			first, _, _ := strings.Cut(string(text), "\n")
			parts = append(parts, first)
		case !p.idle && !p.drains:
			info, err := buildinfo.ReadFile(p.program)
			if err != nil {
				return "", err
			}
			for _, d := range info.Deps {
				if strings.Contains(d.Path, "ThreeDotsLabs") || strings.Contains(d.Path, "Trendyol") {
					name := regexp.MustCompile(`/v\d+$`).ReplaceAllString(d.Path, "")
					if name = filepath.Base(name) + " " + d.Version; d.Replace != nil {
						name += " (a checkout)"
					}
					parts = append(parts, name)
				}
			}
		}
	}
	return strings.Join(parts, "; ") + ".", nil
}

func match(pattern, text string) string {
	if found := regexp.MustCompile(pattern).FindStringSubmatch(text); found != nil {
		return found[1]
	}
	return "?"
}

// The table stands between these lines of the page.
const (
	pageStart = "<!-- peers -->"
	pageEnd   = "<!-- /peers -->"
)

func writePage(name, text string) error {
	page, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(page), pageStart)
	_, after, ok2 := strings.Cut(rest, pageEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the table: %s … %s", name, pageStart, pageEnd)
	}
	return os.WriteFile(name, []byte(before+pageStart+"\n"+text+pageEnd+after), 0o644)
}
