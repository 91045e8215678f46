package relaycmd

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
)

const migrateTimeout = 5 * time.Minute

// ownerUsage is the help of --owner.
const ownerUsage = "`role` that owns the catalog; default: the one that migrates, or pgtrickle_owner for a superuser"

type migrateOptions struct {
	owner            string
	printSQL         bool
	releaseExtension bool
	finish           bool
}

func (p *program) migrateCommand() *ffcli.Command {
	var o migrateOptions
	fs := p.flagSet()
	fs.StringVar(&o.owner, "owner", "", ownerUsage)
	fs.BoolVar(&o.printSQL, "sql", false, "print the SQL and change nothing")
	fs.BoolVar(&o.releaseExtension, "release-extension", false,
		"print what must run, per database, before extension pg_trickle is installed or updated")
	fs.BoolVar(&o.finish, "finish", false, "then end the upgrade of ids: rows from now on have those that older relays do not make")

	return p.withArgs(0, 0, &ffcli.Command{
		Name: "migrate", ShortUsage: "migrate [--owner ROLE] [--finish] | migrate --sql | migrate --release-extension",
		ShortHelp: "install or upgrade the catalog", FlagSet: fs,
	}, func(ctx context.Context, _ []string) error {
		if o.printSQL {
			return p.printSQL()
		}
		if o.releaseExtension {
			return p.releaseExtension(ctx)
		}
		if err := p.migrate(ctx, o.owner); err != nil || !o.finish {
			return err
		}
		return p.finish(ctx)
	})
}

func (p *program) printSQL() error {
	text, err := migrate.SQL(migrate.Specs(p.registry.Backends()))
	if err != nil {
		return err
	}
	_, err = io.WriteString(p.stdout, text)
	return err
}

func (p *program) releaseExtension(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, migrateTimeout)
	defer cancel()

	pool, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()

	lines, err := migrate.Release(ctx, pool)
	if err != nil {
		return err
	}
	if len(lines) == 0 {
		lines = []string{"-- nothing stands in the way of extension pg_trickle"}
	}
	for _, l := range lines {
		fmt.Fprintln(p.stdout, l)
	}
	return nil
}

func (p *program) migrate(ctx context.Context, owner string) error {
	ctx, cancel := context.WithTimeout(ctx, migrateTimeout)
	defer cancel()

	pool, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()

	report, err := migrate.Install(ctx, pool, migrate.Options{Backends: migrate.Specs(p.registry.Backends()), Owner: owner})
	if err != nil {
		return err
	}
	missing, err := missingFor(ctx, pool)
	if err != nil {
		return err
	}

	if p.json() {
		return p.printJSON(map[string]any{
			"migrated": true, "done": report.Done, "missing": append([]string{}, missing...),
			"handed_over": append([]string{}, report.HandedOver...), "to_run": append([]string{}, report.ToRun...),
		})
	}
	for _, s := range report.HandedOver {
		fmt.Fprintln(p.stdout, "handed over from a superuser:", s)
	}
	fmt.Fprintln(p.stdout, report.Done)
	for _, s := range report.ToRun {
		fmt.Fprintln(p.stdout, "let the owner or a superuser run:", s)
	}
	for _, m := range missing {
		fmt.Fprintln(p.stdout, "still missing for this role:", m)
	}
	return nil
}

// missingFor returns what the catalog lacks for this role. If it lacks nothing,
// missingFor returns the outboxes and inboxes that the role may not use.
func missingFor(ctx context.Context, pool *pgxpool.Pool) ([]string, error) {
	missing, err := migrate.Missing(ctx, pool)
	if err != nil || len(missing) > 0 {
		return missing, err
	}

	denied, err := migrate.Denied(ctx, pool)
	for _, d := range denied {
		missing = append(missing, d+": "+migrate.GrantAccess)
	}
	return missing, err
}
