package relaycmd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/peterbourgon/ff/v3"
	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// commands returns the tree of commands. Each command has a file of its own.
func (p *program) commands() *ffcli.Command {
	return &ffcli.Command{Name: p.name, Subcommands: []*ffcli.Command{
		p.runCommand(),
		p.migrateCommand(),
		p.checkCommand(),
		p.statusCommand(),
		p.previewCommand(),
		{Name: "dlq", Subcommands: []*ffcli.Command{
			p.dlqListCommand(),
			p.dlqSummaryCommand(),
			p.dlqRetryCommand(),
			p.dlqDiscardCommand(),
		}},
		p.retryCommand(),
		p.forkCommand(),
		p.replayCommand(),
		p.verifyCommand(),
		p.keysCommand(),
		p.versionCommand(),
		p.healthcheckCommand(),
	}}
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

// leaf is a command that can be executed, under its full name.
type leaf struct {
	name string
	*ffcli.Command
}

func leaves(commands []*ffcli.Command, prefix string) (all []leaf) {
	for _, c := range commands {
		all = append(all, leaves(c.Subcommands, prefix+c.Name+" ")...)
		if c.Exec != nil {
			all = append(all, leaf{prefix + c.Name, c})
		}
	}
	return all
}

// parse selects a command, and sets its flags from the command line, the
// environment and the configuration file. The first of the three wins.
func (p *program) parse(root *ffcli.Command) error {
	all := leaves(root.Subcommands, "")
	flags := flagsOf(all)

	cmd, args, err := p.arrange(all, flags)
	if err != nil {
		return err
	}
	if err := p.setFromEnvironment(cmd.FlagSet, flags); err != nil {
		return err
	}

	cmd.Options = []ff.Option{ff.WithConfigFileFlag("config"), ff.WithConfigFileParser(fileParser(cmd.FlagSet, flags))}
	err = root.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		p.help(cmd, all)
		return flag.ErrHelp
	case err != nil:
		return errors.New(strings.TrimPrefix(err.Error(), "error parsing commandline arguments: "))
	}
	return p.common.validate()
}

// flagsOf returns the flags of all commands by name, and whether each takes a value.
func flagsOf(all []leaf) map[string]bool {
	flags := make(map[string]bool)
	for _, c := range all {
		c.FlagSet.VisitAll(func(f *flag.Flag) {
			b, ok := f.Value.(interface{ IsBoolFlag() bool })
			flags[f.Name] = !ok || !b.IsBoolFlag()
		})
	}
	return flags
}

// arrange puts the arguments into the order that ffcli requires: the command, its
// flags, its arguments. On the command line flags may stand anywhere.
func (p *program) arrange(all []leaf, known map[string]bool) (leaf, []string, error) {
	flags, words, err := p.separate(known)
	if err != nil {
		return leaf{}, nil, err
	}

	if len(words) > 0 && words[0] == "help" {
		words, flags = words[1:], [][]string{{"-h"}}
	}

	cmd, rest, err := p.find(all, words)
	if err != nil {
		return leaf{}, nil, err
	}
	for _, f := range flags {
		name := flagName(f[0])
		if cmd.FlagSet.Lookup(name) == nil && name != "h" && name != "help" {
			return leaf{}, nil, fmt.Errorf("%s: --%s is a flag of another command; see %s %s -h", cmd.name, name, p.name, cmd.name)
		}
	}

	args := slices.Concat(strings.Fields(cmd.name), slices.Concat(flags...), []string{"--"}, rest)
	return cmd, args, nil
}

// separate returns the flags, each with its value, and the other words.
func (p *program) separate(known map[string]bool) (flags [][]string, words []string, err error) {
	for args := p.args; len(args) > 0; {
		arg := args[0]
		n := 1

		switch {
		case arg == "--":
			return flags, append(words, args[1:]...), nil
		case arg == "-V", arg == "-version", arg == "--version":
			return nil, []string{"version"}, nil
		case len(arg) > 1 && arg[0] == '-':
			name := flagName(arg)
			takesValue, ok := known[name]
			if !ok && name != "h" && name != "help" {
				return nil, nil, p.unknownFlag(name, known)
			}
			if takesValue && !strings.Contains(arg, "=") {
				n = min(2, len(args))
			}
			flags = append(flags, args[:n:n])
		default:
			words = append(words, arg)
		}

		args = args[n:]
	}
	return flags, words, nil
}

func flagName(arg string) string {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	return name
}

func (p *program) unknownFlag(name string, known map[string]bool) error {
	if near := relaycfg.Nearest(name, slices.Sorted(maps.Keys(known))); near != "" {
		return fmt.Errorf("unknown flag --%s; did you mean --%s?", name, near)
	}
	return fmt.Errorf("unknown flag --%s; see %s -h", name, p.name)
}

// find returns the command that words begin with, and the words after it.
func (p *program) find(all []leaf, words []string) (leaf, []string, error) {
	if len(words) == 0 {
		return all[0], nil, nil
	}

	var names []string
	for _, c := range all {
		path := strings.Fields(c.name)
		if len(words) >= len(path) && slices.Equal(words[:len(path)], path) {
			return c, words[len(path):], nil
		}
		names = append(names, c.name)
	}

	if words[0] == "dlq" {
		return leaf{}, nil, fmt.Errorf("usage: %s dlq list|summary|retry|discard ...; see %[1]s -h", p.name)
	}
	if near := relaycfg.Nearest(words[0], names); near != "" {
		return leaf{}, nil, fmt.Errorf("unknown command %q; did you mean %q?", words[0], near)
	}
	return leaf{}, nil, fmt.Errorf("unknown command %q; valid commands are %s", words[0], strings.Join(names, ", "))
}

// help prints what -h shows: for run, the commands, too.
func (p *program) help(cmd leaf, all []leaf) {
	w := p.stdout

	if cmd.name == "run" {
		fmt.Fprintf(w, "%s moves events between PostgreSQL and messaging systems.\n\n", p.name)
		fmt.Fprintf(w, "Usage:\n  %s [command] [flags]\n\nCommands:\n", p.name)
		for _, c := range all {
			fmt.Fprintf(w, "  %-14s %s\n", c.name, c.ShortHelp)
		}
		fmt.Fprintf(w, "\nBackends: %s\n", strings.Join(p.registry.Names(), ", "))
	} else {
		fmt.Fprintf(w, "%s: %s\n\nUsage:\n  %s %s\n", cmd.name, cmd.ShortHelp, p.name, cmd.ShortUsage)
	}

	fmt.Fprint(w, "\nFlags, each with its environment variable. A flag overrides the variable, and the variable overrides the file:\n")
	cmd.FlagSet.VisitAll(func(f *flag.Flag) { printFlag(w, f) })
}

func printFlag(w io.Writer, f *flag.Flag) {
	dashes := "--"
	if len(f.Name) == 1 {
		dashes = "-"
	}
	arg, text := flag.UnquoteUsage(f)
	if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
		text += " (default " + f.DefValue + ")"
	}
	fmt.Fprintf(w, "  %s\n      %s\n      %s\n", strings.TrimSpace(dashes+f.Name+" "+arg), text, envName(f.Name))
}
