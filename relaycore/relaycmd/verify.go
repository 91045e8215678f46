package relaycmd

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const verifyTimeout = 10 * time.Minute

func (p *program) verifyCommand() *ffcli.Command {
	fs := p.flagSet()
	accept := fs.Bool("accept-skipped", false, "count the messages that the far end had already from zero again, once they are looked into")
	return p.withArgs(1, 1, &ffcli.Command{
		Name: "verify", ShortUsage: "verify NAME", ShortHelp: "account for every row of an outbox, or message of a source", FlagSet: fs,
	}, func(ctx context.Context, args []string) error { return p.verify(ctx, args[0], *accept) })
}

func (p *program) verify(ctx context.Context, name string, accept bool) error {
	var rows outbox.Accounting
	var messages *store.SourceAccount
	err := p.withDatabase(ctx, verifyTimeout, func(ctx context.Context, db *database) (err error) {
		key := store.Key{Direction: relay.Reverse, Name: name}
		if found := db.pipelines.Find(name); len(found) == 1 && found[0].Key == key {
			messages, err = db.store.SourceAccount(ctx, key)
		} else {
			key.Direction = relay.Forward
			rows, err = db.verify(ctx, name)
		}
		if err == nil && accept {
			err = db.store.AcceptSkipped(ctx, key)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case messages != nil:
		return p.reportMessages(name, messages, accept)
	}
	return p.reportRows(name, rows, accept)
}

// verify accounts for a forward pipeline, from its outbox and its cursor.
func (db *database) verify(ctx context.Context, name string) (acc outbox.Accounting, err error) {
	pl, err := db.forward(name)
	if err == nil {
		acc, err = db.runner.Verify(ctx, pl)
	}
	if err != nil {
		return acc, err
	}
	cursors, err := db.store.List(ctx)
	c := cursors[pl.Key]
	acc.Filtered, acc.Expired, acc.Skipped = c.Filtered, c.Expired, c.Unexpected
	return acc, err
}

func (p *program) reportRows(name string, acc outbox.Accounting, accept bool) error {
	err := p.printAccount(acc, fmt.Sprintf("%s, read by %s, all settled up to id %d", acc.Table, orDash(acc.Strategy), acc.LastID), []tally{
		{"committed", acc.Committed},
		{"delivered", acc.Delivered},
		{"dead", acc.Dead},
		{"parked", acc.Parked},
		{"pending", acc.Pending},
		{"unaccounted", acc.Unaccounted},
		{"skipped", acc.Skipped},
		{"overtaken by retention", acc.Overtaken},
	}, []tally{{"filtered messages", acc.Filtered}, {"expired dead letters", acc.Expired}})
	if err == nil && acc.Skipped != 0 && !accept {
		err = fmt.Errorf("the far end had %d messages of %s already, after no crash and no retry: another producer uses their ids; "+
			"the log has an id of each batch, and replay sends rows again", acc.Skipped, name)
	}
	if err == nil && acc.Unaccounted != 0 {
		err = fmt.Errorf("%d rows of %s are neither delivered, dead, parked nor pending", acc.Unaccounted, acc.Table)
	}
	return err
}

func (p *program) reportMessages(name string, acc *store.SourceAccount, accept bool) error {
	err := p.printAccount(acc, name+", what its source has handed over", []tally{
		{"delivered", acc.Delivered},
		{"dead", acc.Dead},
		{"parked", acc.Parked},
		{"skipped", acc.Skipped},
		{"missed", acc.Missed},
	}, []tally{{"far end made again", acc.Remade}, {"filtered messages", acc.Filtered}, {"expired dead letters", acc.Expired}})
	if err == nil && acc.Missed+acc.Remade > 0 {
		err = fmt.Errorf("the far end of %s lost messages before they were read; the log has an error for each loss", name)
	}
	if err == nil && acc.Skipped > 0 && !accept {
		err = fmt.Errorf("the inbox of %s had the ids of %d other events already: another producer uses them; "+
			"the log has an id of each batch, and id_scope keeps producers apart", name, acc.Skipped)
	}
	return err
}

// tally is a line of an account.
type tally struct {
	what string
	n    int64
}

// printAccount prints lines, and those of rare that are not 0.
func (p *program) printAccount(account any, title string, lines, rare []tally) error {
	if p.json() {
		return p.printJSON(account)
	}
	fmt.Fprintln(p.stdout, title)
	for _, c := range append(lines, slices.DeleteFunc(rare, func(c tally) bool { return c.n == 0 })...) {
		fmt.Fprintf(p.stdout, "  %-23s %d\n", c.what, c.n)
	}
	return nil
}
