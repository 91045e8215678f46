package relaycmd

import (
	"context"
	"fmt"
	"time"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
)

const verifyTimeout = 10 * time.Minute

func (p *program) verifyCommand() *ffcli.Command {
	fs := p.flagSet()
	accept := fs.Bool("accept-skipped", false, "count the messages that the far end had already from zero again, once they are looked into")
	return p.withArgs(1, 1, &ffcli.Command{
		Name: "verify", ShortUsage: "verify NAME", ShortHelp: "account for every row of a forward pipeline's outbox", FlagSet: fs,
	}, func(ctx context.Context, args []string) error {
		return p.verify(ctx, args[0], *accept)
	})
}

func (p *program) verify(ctx context.Context, name string, accept bool) error {
	var acc outbox.Accounting
	err := p.withDatabase(ctx, verifyTimeout, func(ctx context.Context, db *database) error {
		pl, err := db.forward(name)
		if err != nil {
			return err
		}
		if acc, err = db.runner.Verify(ctx, pl); err != nil {
			return err
		}
		cursors, err := db.store.List(ctx)
		c := cursors[pl.Key]
		acc.Filtered, acc.Expired, acc.Skipped = c.Filtered, c.Expired, c.Unexpected
		if err == nil && accept {
			err = db.store.AcceptSkipped(ctx, pl.Key)
		}
		return err
	})
	if err != nil {
		return err
	}

	if p.json() {
		err = p.printJSON(acc)
	} else {
		fmt.Fprintf(p.stdout, "%s, read by %s, all settled up to id %d\n", acc.Table, orDash(acc.Strategy), acc.LastID)
		for _, line := range []struct {
			what string
			n    int64
		}{
			{"committed", acc.Committed},
			{"delivered", acc.Delivered},
			{"dead", acc.Dead},
			{"parked", acc.Parked},
			{"pending", acc.Pending},
			{"unaccounted", acc.Unaccounted},
			{"skipped", acc.Skipped},
			{"overtaken by retention", acc.Overtaken},
		} {
			fmt.Fprintf(p.stdout, "  %-23s %d\n", line.what, line.n)
		}
		if acc.Filtered > 0 {
			fmt.Fprintf(p.stdout, "  %-23s %d\n", "filtered messages", acc.Filtered)
		}
		if acc.Expired > 0 {
			fmt.Fprintf(p.stdout, "  %-23s %d\n", "expired dead letters", acc.Expired)
		}
	}
	if err == nil && acc.Skipped != 0 && !accept {
		err = fmt.Errorf("the far end had %d messages of %s already, after no crash and no retry: another producer uses their ids; "+
			"the log has an id of each batch, and replay sends rows again", acc.Skipped, name)
	}
	if err == nil && acc.Unaccounted != 0 {
		err = fmt.Errorf("%d rows of %s are neither delivered, dead, parked nor pending", acc.Unaccounted, acc.Table)
	}
	return err
}
