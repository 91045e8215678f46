package relaycmd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

func (p *program) keysCommand() *ffcli.Command {
	return p.withArgs(0, 1, &ffcli.Command{
		Name: "keys", ShortUsage: "keys [BACKEND]", ShortHelp: "show every key of a pipeline's configuration", FlagSet: p.flagSet(),
	}, p.printKeys)
}

// printKeys prints the keys of a pipeline's configuration as Markdown or JSON.
// docs/config.md and backends.json are its output; migrate generates the
// validation in SQL from the latter.
func (p *program) printKeys(_ context.Context, args []string) error {
	backends := append(migrate.Specs(p.registry.Backends()), migrate.Backend{
		Name: migrate.Common, HasSink: true, HasSource: true, Sink: catalog.Keys(relay.Forward), Source: catalog.Keys(relay.Reverse),
	})
	if len(args) == 1 {
		b, err := p.registry.Lookup(args[0])
		if err != nil {
			return err
		}
		backends = slices.DeleteFunc(backends, func(s migrate.Backend) bool { return s.Name != b.Name })
	}
	switch {
	case p.json() && len(args) == 1:
		return p.printJSON(backends)
	case p.json():
		text, err := migrate.Describe(backends)
		if err != nil {
			return err
		}
		_, err = p.stdout.Write(text)
		return err
	}
	slices.SortFunc(backends, func(a, b migrate.Backend) int { return strings.Compare(a.Name, b.Name) })
	for _, b := range backends {
		title, prefix := b.Name, strings.ReplaceAll(b.Name, "-", "_")+"_"
		if b.Name == migrate.Common {
			title, prefix = "Every pipeline", ""
		}
		fmt.Fprintf(p.stdout, "## %s\n", title)
		if len(b.Aliases) > 0 {
			fmt.Fprintf(p.stdout, "\nAlso called `%s`.\n", strings.Join(b.Aliases, "`, `"))
		}
		if b.HasSink {
			fmt.Fprint(p.stdout, "\n### Forward\n\n", relaycfg.Table(prefix, b.Sink))
		}
		if b.HasSource {
			fmt.Fprint(p.stdout, "\n### Reverse\n\n", relaycfg.Table(prefix, b.Source))
		}
		fmt.Fprintln(p.stdout)
	}
	return nil
}
