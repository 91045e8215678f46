package relaycmd

import (
	"context"
	"fmt"

	"github.com/peterbourgon/ff/v3/ffcli"
)

func (p *program) forkCommand() *ffcli.Command {
	return p.withArgs(0, 0, &ffcli.Command{
		Name: "fork", ShortUsage: "fork", FlagSet: p.flagSet(),
		ShortHelp: "give the events of a copied database ids of its own, while no relay runs",
	}, p.fork)
}

func (p *program) fork(ctx context.Context, _ []string) error {
	outboxes := 0
	err := p.withDatabase(ctx, commandTimeout, func(ctx context.Context, db *database) (err error) {
		outboxes, err = db.store.Fork(ctx)
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("fork: %w", err)
	case p.json():
		return p.printJSON(map[string]any{"action": "fork", "outboxes": outboxes})
	}
	fmt.Fprintf(p.stdout, "fork: %d outboxes have ids of their own\n", outboxes)
	return nil
}
