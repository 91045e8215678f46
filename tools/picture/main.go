// Picture draws the packages of the relay as a Mermaid diagram, from `go list`,
// into docs/architecture.md.
//
//	picture [-check] ROOT
//
// An arrow points from a package to one that it imports; arrows that follow from
// others are left out. -check writes nothing and fails when the page is stale.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	module = "github.com/grove/pgtrickle-relay/"
	page   = "docs/architecture.md"
)

var (
	section = regexp.MustCompile(`(?s)(<!-- packages -->\n).*(<!-- /packages -->)`)
	// left out: tests' helpers, and modules that are not shipped.
	leftOut = regexp.MustCompile(`^(?:e2e|demo|tools)(?:/|$)|/(?:relaytest|exttest|adversary|[a-z]*test)(?:/|$)`)
)

func main() {
	check := flag.Bool("check", false, "fail when the page is stale")
	flag.Parse()
	root := "."
	if flag.NArg() > 0 {
		root = flag.Arg(0)
	}

	if err := run(root, *check); err != nil {
		fmt.Fprintln(os.Stderr, "picture:", err)
		os.Exit(1)
	}
}

func run(root string, check bool) error {
	imports, err := list(root)
	if err != nil {
		return err
	}
	file := filepath.Join(root, page)
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text := section.ReplaceAllString(string(old), "${1}"+draw(reduce(imports))+"${2}")
	if text == string(old) {
		return nil
	}
	if check {
		return errors.New(page + " is stale: run make picture")
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// list returns the packages of the workspace with the packages that they import,
// both without the module's prefix. The packages of a backend are one.
func list(root string) (map[string][]string, error) {
	cmd := exec.CommandContext(context.Background(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "work")
	cmd.Dir = root
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}

	imports := make(map[string][]string)
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		from := node(fields[0])
		if from == "" {
			continue
		}
		imports[from] = append(imports[from], []string{}...)
		for _, path := range fields[1:] {
			if to := node(path); to != "" && to != from && !slices.Contains(imports[from], to) {
				imports[from] = append(imports[from], to)
			}
		}
	}
	return imports, nil
}

// node returns a package's name in the picture, or "" when it is not shown.
func node(path string) string {
	name, ours := strings.CutPrefix(path, module)
	if !ours || leftOut.MatchString(name) {
		return ""
	}
	first, _, _ := strings.Cut(name, "/")
	if first != "relaycore" && first != "relay-all" {
		return "backends"
	}
	return strings.TrimPrefix(name, "relaycore/")
}

// reduce drops the arrows that follow from others.
func reduce(imports map[string][]string) map[string][]string {
	reached := make(map[string]map[string]bool)
	var reach func(from string) map[string]bool
	reach = func(from string) map[string]bool {
		if reached[from] != nil {
			return reached[from]
		}
		all := make(map[string]bool)
		reached[from] = all
		for _, to := range imports[from] {
			all[to] = true
			maps.Copy(all, reach(to))
		}
		return all
	}

	reduced := make(map[string][]string)
	for from, direct := range imports {
		reduced[from] = nil
		for _, to := range direct {
			follows := slices.ContainsFunc(direct, func(other string) bool { return other != to && reach(other)[to] })
			if !follows {
				reduced[from] = append(reduced[from], to)
			}
		}
	}
	return reduced
}

func draw(imports map[string][]string) string {
	var text strings.Builder
	text.WriteString("```mermaid\nflowchart TD\n")
	for _, from := range slices.Sorted(maps.Keys(imports)) {
		label := strings.TrimPrefix(from, "internal/")
		if strings.HasPrefix(from, "internal/") {
			fmt.Fprintf(&text, "  %s[%s]\n", id(from), label)
		} else {
			fmt.Fprintf(&text, "  %s([%s])\n", id(from), label) // public
		}
	}
	for _, from := range slices.Sorted(maps.Keys(imports)) {
		for _, to := range slices.Sorted(slices.Values(imports[from])) {
			fmt.Fprintf(&text, "  %s --> %s\n", id(from), id(to))
		}
	}
	text.WriteString("```\n")
	return text.String()
}

func id(name string) string { return strings.NewReplacer("/", "_", "-", "_").Replace(name) }
