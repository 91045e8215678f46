package cli_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/cli"
)

// A flag of the command line may stand before the command. The environment and the file
// set what it does not, and one file may have the keys of all commands.
func ExampleProgram_Parse() {
	dir, _ := os.MkdirTemp("", "cli")
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "relay.conf")
	_ = os.WriteFile(file, []byte("postgres_url = \"postgres://localhost/db\" # the database\ndrain-timeout: 7s\n"), 0o600)

	run, status := flag.NewFlagSet("run", flag.ContinueOnError), flag.NewFlagSet("status", flag.ContinueOnError)
	for _, fs := range []*flag.FlagSet{run, status} {
		fs.String("config", "", "")
		fs.String("postgres-url", "", "")
		fs.String("output", "text", "")
	}
	run.Duration("drain-timeout", 0, "")
	show := func(context.Context, []string) error {
		fmt.Println(status.Lookup("postgres-url").Value, status.Lookup("output").Value)
		return nil
	}

	parse := func(environ []string, args ...string) error {
		root := &ffcli.Command{Name: "relay", Subcommands: []*ffcli.Command{
			{Name: "run", FlagSet: run, Exec: show}, {Name: "status", FlagSet: status, Exec: show},
		}}
		if err := (cli.Program{Args: args, Environ: environ, Stdout: os.Stdout}).Parse(root); err != nil {
			return err
		}
		return root.Run(context.Background())
	}
	fmt.Println(parse([]string{"PGTRICKLE_RELAY_OUTPUT=json"}, "--config", file, "status"))
	fmt.Println(parse([]string{"PGTRICKLE_RELAY_OUTPUTS=json"}, "status"))
	fmt.Println(parse(nil, "status", "--drain-timeout=1s"))
	fmt.Println(parse(nil, "stauts"))
	// Output:
	// postgres://localhost/db json
	// <nil>
	// unknown environment variable PGTRICKLE_RELAY_OUTPUTS; did you mean PGTRICKLE_RELAY_OUTPUT?
	// status: --drain-timeout is a flag of another command; see relay status -h
	// unknown command "stauts"; did you mean "status"?
}
