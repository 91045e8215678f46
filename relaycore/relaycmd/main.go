// Package relaycmd is the body of every relay binary: flags, commands, and the
// daemon. A binary is a list of backends:
//
//	func main() { relaycmd.Main("relay-nats", natsrelay.Backend()) }
package relaycmd

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Main runs the binary called name with these backends, and exits.
func Main(name string, backends ...relay.Backend) {
	os.Exit(run(context.Background(), &program{
		name: name, backends: backends, args: os.Args[1:], environ: os.Environ(), stdout: os.Stdout, stderr: os.Stderr,
	}))
}

// program is a process and what it was started with.
type program struct {
	name     string
	backends []relay.Backend
	args     []string
	environ  []string
	stdout   io.Writer
	stderr   io.Writer

	registry *relay.Registry
	common   commonOptions
}

// errReported ends the program with status 1 and prints nothing more.
var errReported = errors.New("already reported")

// commandTimeout bounds a command that only reads or changes a few rows.
const commandTimeout = 30 * time.Second

func run(ctx context.Context, p *program) int {
	p.stdout, p.stderr = terminal{p.stdout}, terminal{p.stderr}
	err := pg.Explain(p.run(ctx))

	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errReported):
		return 1
	}

	fmt.Fprintf(p.stderr, "error: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n       "))
	return 1
}

func (p *program) run(ctx context.Context) (err error) {
	if p.registry, err = relay.NewRegistry(p.backends...); err != nil {
		return err
	}

	root := p.commands()
	if err := p.parse(root); err != nil {
		return err
	}
	return root.Run(ctx)
}

func (p *program) printJSON(v any) error {
	enc := json.NewEncoder(p.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
