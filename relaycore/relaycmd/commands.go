package relaycmd

import (
	"context"
	"fmt"
	"strings"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/cli"
)

// commands returns the tree of commands. Each command has a file of its own.
func (p *program) commands() *ffcli.Command {
	return &ffcli.Command{
		Name:      p.name,
		ShortHelp: "moves events between PostgreSQL and messaging systems",
		LongHelp:  "Backends: " + strings.Join(p.registry.Names(), ", "),
		Subcommands: []*ffcli.Command{
			p.runCommand(),
			p.migrateCommand(),
			p.checkCommand(),
			p.statusCommand(),
			p.previewCommand(),
			{Name: "dlq", ShortUsage: "dlq list|summary|retry|discard ...", Subcommands: []*ffcli.Command{
				p.dlqListCommand(),
				p.dlqSummaryCommand(),
				p.dlqRetryCommand(),
				p.dlqDiscardCommand(),
			}},
			p.retryCommand(),
			p.snapshotCommand(),
			p.forkCommand(),
			p.replayCommand(),
			p.verifyCommand(),
			p.keysCommand(),
			p.versionCommand(),
			p.healthcheckCommand(),
		},
	}
}

// parse selects a command of root and sets its flags.
func (p *program) parse(root *ffcli.Command) error {
	if err := (cli.Program{Args: p.args, Environ: p.environ, Stdout: p.stdout}).Parse(root); err != nil {
		return err
	}
	return p.common.validate()
}

// withArgs sets what c does. It takes between minArgs and maxArgs arguments.
func (p *program) withArgs(minArgs, maxArgs int, c *ffcli.Command, exec func(ctx context.Context, args []string) error) *ffcli.Command {
	c.Exec = func(ctx context.Context, args []string) error {
		if len(args) < minArgs || len(args) > maxArgs {
			return fmt.Errorf("usage: %s %s", p.name, c.ShortUsage)
		}
		return exec(ctx, args)
	}
	return c
}
