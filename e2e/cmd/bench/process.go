package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
)

func binary() (string, error) {
	root, err := brokers.Root()
	return filepath.Join(root, "bin", "pgtrickle-relay"), err
}

func migrate(ctx context.Context, database string) error {
	path, err := binary()
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, path, "migrate", "--postgres-url", database).CombinedOutput()
	if err != nil {
		return fmt.Errorf("migrate: %w: %s", err, out)
	}
	return nil
}

// process is a relay that runs.
type process struct {
	cmd     *exec.Cmd
	addr    string
	log     bytes.Buffer
	scrapes int
}

// startRelay starts the daemon with a group of its own and waits until it is ready.
func startRelay(ctx context.Context, database, group string) (*process, error) {
	path, err := binary()
	if err != nil {
		return nil, err
	}
	return startBinary(ctx, path, database, group)
}

func startBinary(ctx context.Context, path, database, group string) (*process, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &process{addr: ln.Addr().String()}
	_ = ln.Close()
	p.cmd = exec.CommandContext(ctx, path, "--postgres-url", database, "--metrics-addr", p.addr,
		"--relay-group-id", group, "--allow-files", "/")
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		if _, err := p.get(ctx, "/readyz"); err == nil {
			return p, nil
		} else if time.Now().After(deadline) {
			p.stop()
			return nil, fmt.Errorf("relay does not get ready: %w\n%s", err, p.log.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
}

func (p *process) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return body, err
}

// metric returns the sum of the series called name whose labels hold label.
func (p *process) metric(ctx context.Context, name, label string) (sum float64, err error) {
	p.scrapes++
	body, err := p.get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(body)); lines.Scan(); {
		line := lines.Text()
		if !strings.HasPrefix(line, name) || !strings.Contains(line, label) {
			continue
		}
		if rest := line[len(name):]; rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, nil
}

// waitPublished waits until the pipeline has moved at least n messages. A look costs
// the relay what a thousand messages do, so it looks rarely until the end is near.
func (p *process) waitPublished(ctx context.Context, pipeline string, n float64) (float64, time.Time, error) {
	label := `pipeline="` + pipeline + `"`
	began, moved := time.Now(), time.Now()
	for first, last := -1.0, 0.0; ; {
		at := time.Now()
		got, err := p.metric(ctx, "pgtrickle_relay_messages_published_total", label)
		if err != nil {
			return 0, at, err
		}
		if got >= n {
			return got, at, nil
		}
		if got > last {
			last, moved = got, at
		} else if time.Since(moved) > 60*time.Second {
			return 0, at, fmt.Errorf("relay stands still at %.0f of %.0f messages:\n%s", got, n, p.log.String())
		}
		if first < 0 {
			first, began = got, at
		}
		pause := max(5*time.Millisecond, at.Sub(began)/100) // so the end is known to a hundredth
		if got > first {
			left := time.Duration(float64(at.Sub(began)) / (got - first) * (n - got))
			pause = min(max(left/2, pause), 250*time.Millisecond)
		}
		time.Sleep(pause)
	}
}

type cost struct {
	cpu, allocs, rss float64
	scrapes          int
}

// perScrape returns what one look at the metrics allocates in the relay.
func (p *process) perScrape(ctx context.Context) (float64, error) {
	first, err := p.cost(ctx)
	if err != nil {
		return 0, err
	}
	for range 8 {
		if _, err := p.metric(ctx, "go_memstats_mallocs_total", ""); err != nil {
			return 0, err
		}
	}
	last, err := p.cost(ctx)
	return (last.allocs - first.allocs) / float64(last.scrapes-first.scrapes), err
}

// cost reads what the process has used so far.
func (p *process) cost(ctx context.Context) (c cost, err error) {
	if c.allocs, err = p.metric(ctx, "go_memstats_mallocs_total", ""); err != nil {
		return c, err
	}
	c.scrapes = p.scrapes
	if c.cpu, err = p.cpu(); err != nil {
		return c, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return c, err
	}
	if _, rest, ok := strings.Cut(string(status), "VmHWM:"); ok {
		var kib float64
		if _, err := fmt.Sscan(rest, &kib); err != nil {
			return c, err
		}
		c.rss = kib / 1024
	}
	return c, nil
}

// cpu returns the seconds that the process has computed so far.
func (p *process) cpu() (seconds float64, err error) { return cpuOf(p.cmd.Process.Pid) }

// cpuOf returns the seconds that a process has computed so far.
func cpuOf(pid int) (seconds float64, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, i := range []int{11, 12} { // utime and stime, in hundredths of a second
		ticks, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return 0, err
		}
		seconds += ticks / 100
	}
	return seconds, nil
}
