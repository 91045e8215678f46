package relaycmd

import (
	"context"
	"fmt"
	"time"

	"github.com/peterbourgon/ff/v3/ffcli"
)

const healthcheckTimeout = 4 * time.Second

func (p *program) healthcheckCommand() *ffcli.Command {
	fs := p.flagSet()
	url := fs.String("url", "", "`URL` to request; default: /health, or /livez with --live, at --metrics-addr on this machine")
	live := fs.Bool("live", false, "request /livez, which only shows that the process runs")

	return p.withArgs(0, 0, &ffcli.Command{
		Name: "healthcheck", ShortUsage: "healthcheck [--live] [--url URL]", FlagSet: fs,
		ShortHelp: "request the health of a running relay; for container health checks",
	}, func(ctx context.Context, _ []string) error {
		ctx, cancel := context.WithTimeout(ctx, healthcheckTimeout)
		defer cancel()
		if err := p.common.metrics.CheckHealth(ctx, *url, *live); err != nil {
			return err
		}
		fmt.Fprintln(p.stdout, "ok")
		return nil
	})
}
