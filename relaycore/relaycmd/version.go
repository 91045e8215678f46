package relaycmd

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/peterbourgon/ff/v3/ffcli"
)

// version is set by the linker. The default is the module's version.
var version string

func (p *program) versionCommand() *ffcli.Command {
	return p.withArgs(0, 0, &ffcli.Command{
		Name: "version", ShortUsage: "version", ShortHelp: "show version and backends", FlagSet: p.flagSet(),
	}, p.printVersion)
}

func (p *program) printVersion(context.Context, []string) error {
	if p.json() {
		return p.printJSON(map[string]any{
			"binary": p.name, "version": buildVersion(), "go": runtime.Version(), "backends": p.registry.Names(),
		})
	}
	fmt.Fprintf(p.stdout, "%s %s (%s)\nbackends: %s\n", p.name, buildVersion(), runtime.Version(), strings.Join(p.registry.Names(), ", "))
	return nil
}

// buildVersion returns the version of the binary, or the revision of a development build.
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
