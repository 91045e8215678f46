// Codelines counts the code lines of each backend module and of each package of
// relaycore, and fails when one is above its ceiling.
//
//	codelines [-ceilings FILE] [-lower] ROOT
//
// A code line has at least one token. Tests, comments and blank lines do not
// count. -lower writes each ceiling that is above its count down to the count;
// it never raises one. A later feature raises a ceiling by hand, in the commit
// that needs it, with the reason.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/grove/pgtrickle-relay/tools/internal/code"
)

// packageCeiling holds for every package of relaycore that the file does not name.
const packageCeiling = 1600

func main() {
	file := flag.String("ceilings", "tools/codelines/ceilings.txt", "file with a ceiling per package, relative to ROOT")
	lower := flag.Bool("lower", false, "lower the ceilings to the counts")
	flag.Parse()
	root := "."
	if flag.NArg() > 0 {
		root = flag.Arg(0)
	}

	if err := run(root, filepath.Join(root, *file), *lower); err != nil {
		fmt.Fprintln(os.Stderr, "codelines:", err)
		os.Exit(1)
	}
}

func run(root, file string, lower bool) error {
	counts, err := count(os.DirFS(root))
	if err != nil {
		return err
	}
	ceilings, err := readCeilings(file)
	if err != nil {
		return err
	}

	var over []string
	for _, unit := range slices.Sorted(maps.Keys(counts)) {
		lines, ceiling := counts[unit], packageCeiling
		if c, ok := ceilings[unit]; ok {
			ceiling = c
		}
		fmt.Printf("%6d of %6d  %s\n", lines, ceiling, unit)
		if lines > ceiling {
			over = append(over, fmt.Sprintf("%s has %d code lines, its ceiling is %d", unit, lines, ceiling))
		}
		if _, ok := ceilings[unit]; ok && lower {
			ceilings[unit] = min(lines, ceiling)
		}
	}

	if lower {
		if err := writeCeilings(file, ceilings); err != nil {
			return err
		}
	}
	if len(over) > 0 {
		return errors.New(strings.Join(over, "\n  "))
	}
	return nil
}

// count returns the code lines per unit: a backend's module, or a package of
// relaycore.
func count(root fs.FS) (map[string]int, error) {
	counts := make(map[string]int)
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name != "." && strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata" {
				return fs.SkipDir
			}
			return nil
		}

		unit := unitOf(name)
		if unit == "" {
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		counts[unit] += code.Lines(text)
		return nil
	})
	return counts, err
}

// unitOf returns the unit that a file counts for, or "" when it does not count.
func unitOf(name string) string {
	if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
		return ""
	}
	module, _, _ := strings.Cut(name, "/")
	switch {
	case module == "relaycore":
		return path.Dir(name)
	case strings.HasPrefix(module, "relay-"):
		return module
	}
	return ""
}

func readCeilings(file string) (map[string]int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}

	ceilings := make(map[string]int)
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("%s: %q: want a package and a number", file, line)
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, fmt.Errorf("%s: %q: %w", file, line, err)
		}
		ceilings[fields[0]] = n
	}
	return ceilings, nil
}

// writeCeilings replaces the numbers in file and keeps its comments.
func writeCeilings(file string, ceilings map[string]int) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		if n, ok := ceilings[fields[0]]; ok {
			fields[1] = strconv.Itoa(n)
			lines[i] = strings.Join(fields, " ")
		}
	}
	return os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o644)
}
