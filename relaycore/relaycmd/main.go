// Package relaycmd is the body of every relay binary: flags, commands, and the
// daemon itself. A binary is a list of backends:
//
//	func main() { relaycmd.Main("relay-nats", natsrelay.Backend()) }
package relaycmd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// version is set by the linker. Without it the version is the module's.
var version string //nolint:gochecknoglobals // -ldflags -X has no other way

// Main runs the binary called name with these backends, and exits.
func Main(name string, backends ...relay.Backend) {
	os.Exit(run(context.Background(), &program{
		name: name, backends: backends, args: os.Args[1:], environ: os.Environ(), stdout: os.Stdout, stderr: os.Stderr,
	}))
}

// program is a process as its environment made it.
type program struct {
	name     string
	backends []relay.Backend
	args     []string
	environ  []string
	stdout   io.Writer
	stderr   io.Writer

	registry *relay.Registry
	opts     options
	command  string
}

// errSilent ends the program with status 1 when all has been said.
var errSilent = errors.New("said already")

func run(ctx context.Context, p *program) int {
	err := p.run(ctx)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errSilent):
		return 1
	}
	fmt.Fprintf(p.stderr, "error: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n       "))
	return 1
}

func (p *program) run(ctx context.Context) (err error) {
	if p.registry, err = relay.NewRegistry(p.backends...); err != nil {
		return err
	}
	cmd, positional, err := p.parse()
	if err != nil {
		return err
	}
	if len(positional) < cmd.minArgs || len(positional) > cmd.maxArgs {
		return fmt.Errorf("usage: %s %s", p.name, cmd.usage)
	}
	if cmd.database {
		if err := p.opts.requireDatabase(); err != nil {
			return err
		}
	}
	p.command = cmd.name
	return cmd.run(ctx, p, positional)
}

// buildVersion is what the binary calls itself.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}

func runVersion(_ context.Context, p *program, _ []string) error {
	if p.opts.json() {
		return p.printJSON(map[string]any{"binary": p.name, "version": buildVersion(), "go": runtime.Version(), "backends": p.registry.Names()})
	}
	fmt.Fprintf(p.stdout, "%s %s (%s)\nbackends: %s\n", p.name, buildVersion(), runtime.Version(), strings.Join(p.registry.Names(), ", "))
	return nil
}

// commandTimeout bounds what a command that is not the daemon waits for.
const commandTimeout = 30 * time.Second
