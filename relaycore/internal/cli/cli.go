// Package cli parses a command line for a tree of ffcli commands. Flags may stand
// anywhere, and come from the environment or from a configuration file as well.
package cli

import (
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

// Program is what a process was started with.
type Program struct {
	Args    []string // without the program's name
	Environ []string // in the form of [os.Environ]
	Stdout  io.Writer
}

// Parse selects a command of root, and sets its flags from the command line, the
// environment and the configuration file. The first of the three wins. After it,
// root.Run runs the command. Without a command, the first one is selected.
//
// The error is [flag.ErrHelp] if help was asked for, and has been printed. The help of the
// first command shows all commands, and the short and the long help of root.
func (pr Program) Parse(root *ffcli.Command) error {
	p := &parser{Program: pr, root: root, commands: leaves(root.Subcommands, "")}
	p.flags = flagsOf(p.commands)

	cmd, args, err := p.arrange()
	if err != nil {
		return err
	}
	if err := p.setFromEnvironment(cmd.FlagSet); err != nil {
		return err
	}

	cmd.Options = []ff.Option{ff.WithConfigFileFlag("config"), ff.WithConfigFileParser(p.fileParser(cmd.FlagSet))}
	err = root.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		p.help(cmd)
		return flag.ErrHelp
	case err != nil:
		return errors.New(strings.TrimPrefix(err.Error(), "error parsing commandline arguments: "))
	}
	return nil
}

type parser struct {
	Program
	root     *ffcli.Command
	commands []leaf
	flags    map[string]bool // of all commands: whether each takes a value
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

// arrange returns the command and the arguments in the order that ffcli requires: the
// command, its flags, its arguments.
func (p *parser) arrange() (leaf, []string, error) {
	flags, words, err := p.separate()
	if err != nil {
		return leaf{}, nil, err
	}

	if len(words) > 0 && words[0] == "help" {
		words, flags = words[1:], [][]string{{"-h"}}
	}

	cmd, rest, err := p.find(words)
	if err != nil {
		return leaf{}, nil, err
	}
	for _, f := range flags {
		name := flagName(f[0])
		if cmd.FlagSet.Lookup(name) == nil && name != "h" && name != "help" {
			return leaf{}, nil, fmt.Errorf("%s: --%s is a flag of another command; see %s %s -h", cmd.name, name, p.root.Name, cmd.name)
		}
	}

	args := slices.Concat(strings.Fields(cmd.name), slices.Concat(flags...), []string{"--"}, rest)
	return cmd, args, nil
}

// separate returns the flags, each with its value, and the other words.
func (p *parser) separate() (flags [][]string, words []string, err error) {
	for args := p.Args; len(args) > 0; {
		arg := args[0]
		n := 1

		switch {
		case arg == "--":
			return flags, append(words, args[1:]...), nil
		case arg == "-V", arg == "-version", arg == "--version":
			return nil, []string{"version"}, nil
		case len(arg) > 1 && arg[0] == '-':
			name := flagName(arg)
			takesValue, ok := p.flags[name]
			if !ok && name != "h" && name != "help" {
				return nil, nil, p.unknownFlag(name)
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

func (p *parser) unknownFlag(name string) error {
	if near := relaycfg.Nearest(name, slices.Sorted(maps.Keys(p.flags))); near != "" {
		return fmt.Errorf("unknown flag --%s; did you mean --%s?", name, near)
	}
	return fmt.Errorf("unknown flag --%s; see %s -h", name, p.root.Name)
}

// find returns the command that words begin with, and the words after it.
func (p *parser) find(words []string) (leaf, []string, error) {
	if len(words) == 0 {
		return p.commands[0], nil, nil
	}

	var names []string
	for _, c := range p.commands {
		path := strings.Fields(c.name)
		if len(words) >= len(path) && slices.Equal(words[:len(path)], path) {
			return c, words[len(path):], nil
		}
		names = append(names, c.name)
	}

	for _, c := range p.root.Subcommands {
		if c.Name == words[0] {
			return leaf{}, nil, fmt.Errorf("usage: %s %s; see %[1]s -h", p.root.Name, c.ShortUsage)
		}
	}
	if near := relaycfg.Nearest(words[0], names); near != "" {
		return leaf{}, nil, fmt.Errorf("unknown command %q; did you mean %q?", words[0], near)
	}
	return leaf{}, nil, fmt.Errorf("unknown command %q; valid commands are %s", words[0], strings.Join(names, ", "))
}

// help prints the help of cmd.
func (p *parser) help(cmd leaf) {
	w := p.Stdout

	if cmd.Command == p.commands[0].Command {
		fmt.Fprintf(w, "%s %s.\n\n", p.root.Name, p.root.ShortHelp)
		fmt.Fprintf(w, "Usage:\n  %s [command] [flags]\n\nCommands:\n", p.root.Name)
		for _, c := range p.commands {
			fmt.Fprintf(w, "  %-14s %s\n", c.name, c.ShortHelp)
		}
		fmt.Fprintf(w, "\n%s\n", p.root.LongHelp)
	} else {
		fmt.Fprintf(w, "%s: %s\n\nUsage:\n  %s %s\n", cmd.name, cmd.ShortHelp, p.root.Name, cmd.ShortUsage)
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
	fmt.Fprintf(w, "  %s\n      %s\n      %s\n", strings.TrimSpace(dashes+f.Name+" "+arg), text, variable(f.Name))
}
