package relaycmd

import (
	"context"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
)

func (p *program) snapshotCommand() *ffcli.Command {
	var where string
	fs := p.flagSet()
	fs.StringVar(&where, "where", "", "`condition` in SQL that selects the rows, evaluated with the rights of this command's role")
	c := p.withArgs(1, 1, &ffcli.Command{
		Name: "snapshot", ShortUsage: "snapshot NAME [--where CONDITION]", FlagSet: fs,
		ShortHelp: "send the rows of a running pipeline's table again",
	}, p.ask("snapshot", func(s store.Store, ctx context.Context, name string) (string, error) {
		return s.Snapshot(ctx, name, where)
	}))
	c.Subcommands = []*ffcli.Command{p.withArgs(1, 1, &ffcli.Command{
		Name: "cancel", ShortUsage: "snapshot cancel NAME", FlagSet: p.flagSet(),
		ShortHelp: "end the snapshot of a pipeline; what was sent stays",
	}, p.ask("snapshot cancel", store.Store.CancelSnapshot))}
	return c
}
