package relaycmd

import (
	"context"
	"fmt"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
)

func (p *program) retryCommand() *ffcli.Command {
	return p.withArgs(1, 1, &ffcli.Command{
		Name: "retry", ShortUsage: "retry NAME", FlagSet: p.flagSet(),
		ShortHelp: "start a pipeline at once that waits after an error",
	}, p.ask("retry", store.Store.Retry))
}

// ask returns a command that calls an SQL function for a pipeline, and prints what the
// function did. Its role needs no right on the catalog's tables.
func (p *program) ask(verb string, call func(store.Store, context.Context, string) (string, error)) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		pool, err := p.connect(ctx)
		if err != nil {
			return err
		}
		defer pool.Close()
		did, err := call(store.New(pool, p.common.group), ctx, args[0])
		switch {
		case err != nil:
			return fmt.Errorf("%s %q: %w", verb, args[0], err)
		case p.json():
			return p.printJSON(map[string]any{"action": verb, "pipeline": args[0], "result": did})
		}
		fmt.Fprintf(p.stdout, "%s: %s\n", verb, did)
		return nil
	}
}
