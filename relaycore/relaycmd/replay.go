package relaycmd

import (
	"context"
	"errors"
	"fmt"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pipeline"
)

type replayOptions = pipeline.ReplayOptions

func (p *program) replayCommand() *ffcli.Command {
	var o replayOptions
	fs := p.flagSet()
	fs.Int64Var(&o.From, "from", 0, "first outbox `id`")
	fs.Int64Var(&o.To, "to", 0, "last outbox `id`")
	fs.BoolVar(&o.NewIDs, "new-ids", false, "give the messages new ids, for receivers that drop known ids as duplicates")

	return p.withArgs(1, 1, &ffcli.Command{
		Name: "replay", ShortUsage: "replay NAME --from ID --to ID", FlagSet: fs,
		ShortHelp: "publish delivered outbox rows again, without moving the checkpoint",
	}, func(ctx context.Context, args []string) error {
		return p.replayRows(ctx, &o, args[0])
	})
}

// replayRows publishes rows of the outbox again. It may run beside the pipeline:
// the two share only the outbox and the receiver.
func (p *program) replayRows(ctx context.Context, o *replayOptions, name string) error {
	if o.From < 1 || o.To < o.From {
		return errors.New("select the rows with --from ID --to ID, the first not greater than the last")
	}

	var report pipeline.ReplayReport
	err := p.withDatabase(ctx, 0, func(ctx context.Context, db *database) error {
		pl, err := db.forward(name)
		if err != nil {
			return err
		}
		if report, err = db.runner.Replay(ctx, pl, *o, p.logger()); err != nil {
			return fmt.Errorf("replay %q, after %d messages: %w", pl.Name, report.Published, err)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case p.json():
		return p.printJSON(report)
	}
	fmt.Fprintf(p.stdout, "replayed rows %d to %d of %s: %d messages published, %d refused\n",
		report.From, report.To, report.Pipeline, report.Published, report.Refused)
	if report.Filtered > 0 {
		fmt.Fprintf(p.stdout, "%d messages filtered\n", report.Filtered)
	}
	return nil
}
