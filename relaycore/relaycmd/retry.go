package relaycmd

import (
	"context"
	"fmt"

	"github.com/peterbourgon/ff/v3/ffcli"
)

func (p *program) retryCommand() *ffcli.Command {
	return p.withArgs(1, 1, &ffcli.Command{
		Name: "retry", ShortUsage: "retry NAME", FlagSet: p.flagSet(),
		ShortHelp: "start a pipeline at once that waits after an error",
	}, p.retryPipeline)
}

func (p *program) retryPipeline(ctx context.Context, args []string) error {
	name := args[0]
	err := p.withDatabase(ctx, commandTimeout, func(ctx context.Context, db *database) error {
		return db.store.Retry(ctx, name)
	})
	switch {
	case err != nil:
		return fmt.Errorf("retry %q: %w", name, err)
	case p.json():
		return p.printJSON(map[string]any{"action": "retry", "pipeline": name})
	}
	fmt.Fprintf(p.stdout, "retry: the owner of %s was notified\n", name)
	return nil
}
