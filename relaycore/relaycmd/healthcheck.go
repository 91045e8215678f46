package relaycmd

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/peterbourgon/ff/v3/ffcli"
)

const healthcheckTimeout = 4 * time.Second

type healthcheckOptions struct {
	url  string
	live bool
}

func (p *program) healthcheckCommand() *ffcli.Command {
	var o healthcheckOptions
	fs := p.flagSet()
	fs.StringVar(&o.url, "url", "", "`URL` to request; default: /health, or /livez with --live, at --metrics-addr on this machine")
	fs.BoolVar(&o.live, "live", false, "request /livez, which only shows that the process runs")

	return p.withArgs(0, 0, &ffcli.Command{
		Name: "healthcheck", ShortUsage: "healthcheck [--live] [--url URL]", FlagSet: fs,
		ShortHelp: "request the health of a running relay; for container health checks",
	}, func(ctx context.Context, _ []string) error {
		return p.checkHealth(ctx, &o)
	})
}

func (p *program) checkHealth(ctx context.Context, o *healthcheckOptions) error {
	url := o.url
	if url == "" {
		var err error
		if url, err = localURL(p.common.metricsAddr, o.live); err != nil {
			return err
		}
	}

	ctx, cancel := context.WithTimeout(ctx, healthcheckTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("healthcheck: %w", err)
	}
	defer resp.Body.Close()

	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("healthcheck: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("healthcheck: %s answered %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	fmt.Fprintln(p.stdout, "ok")
	return nil
}

func localURL(metricsAddr string, live bool) (string, error) {
	host, port, err := net.SplitHostPort(metricsAddr)
	if err != nil {
		return "", fmt.Errorf("--metrics-addr: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}

	path := "/health"
	if live {
		path = "/livez"
	}
	return "http://" + net.JoinHostPort(host, port) + path, nil
}
