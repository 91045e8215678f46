// Words checks the language of Markdown pages, Go comments, errors and log
// messages against the rules in CONTRIBUTING.md.
//
//	words [-ceilings FILE] [-lower] [-list UNIT] ROOT
//
// A unit is a Go package's directory or a Markdown page. Three things are
// counted in each: words that the rules replace, sentences and messages that
// are too long, and lines that are too wide. Every count has a ceiling, which
// is 0 where the file has none. -lower writes the ceilings down to the counts
// and drops those at 0. -list prints the findings of the units that begin with
// UNIT.
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
)

func main() {
	file := flag.String("ceilings", "tools/words/ceilings.txt", "file with the ceilings of each unit, relative to ROOT")
	lower := flag.Bool("lower", false, "lower the ceilings to the counts")
	list := flag.String("list", "-", "print the findings of units with this prefix")
	flag.Parse()
	root := "."
	if flag.NArg() > 0 {
		root = flag.Arg(0)
	}

	if err := run(root, filepath.Join(root, *file), *lower, *list); err != nil {
		fmt.Fprintln(os.Stderr, "words:", err)
		os.Exit(1)
	}
}

// kind is what a finding is about.
type kind int

const (
	word kind = iota // a word that the rules replace
	long             // a sentence or message with too many words
	wide             // a line with too many columns
	kinds
)

var kindNames = [kinds]string{"word", "long", "wide"}

type finding struct {
	kind kind
	line int
	file string
	text string
}

func (f finding) String() string {
	return fmt.Sprintf("%s:%d: %s: %s", f.file, f.line, kindNames[f.kind], f.text)
}

type counts [kinds]int

func run(root, file string, lower bool, list string) error {
	units, err := check(os.DirFS(root))
	if err != nil {
		return err
	}
	ceilings, err := readCeilings(file)
	if err != nil {
		return err
	}

	var over []string
	var total counts
	for _, unit := range slices.Sorted(maps.Keys(units)) {
		var n counts
		for _, f := range units[unit] {
			n[f.kind]++
			total[f.kind]++
			if strings.HasPrefix(unit, list) {
				fmt.Println(f)
			}
		}
		for k, name := range kindNames {
			if n[k] > ceilings[unit][k] {
				over = append(over, fmt.Sprintf("%s has %d findings of kind %q, its ceiling is %d: go run ./words -list %s ..",
					unit, n[k], name, ceilings[unit][k], unit))
			}
		}
	}
	fmt.Printf("%d words to replace, %d sentences too long, %d lines too wide\n", total[word], total[long], total[wide])

	if lower {
		if err := lowerCeilings(file, ceilings, units); err != nil {
			return err
		}
	}
	if len(over) > 0 {
		return errors.New(strings.Join(over, "\n  "))
	}
	return nil
}

// check returns the findings of every unit below root.
func check(root fs.FS) (map[string][]finding, error) {
	units := make(map[string][]finding)
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			hidden := strings.HasPrefix(entry.Name(), ".") && name != "." && name != ".github"
			if hidden || entry.Name() == "testdata" || name == "bin" {
				return fs.SkipDir
			}
			return nil
		}

		var find func(name string, text []byte) ([]finding, error)
		unit := name
		switch path.Ext(name) {
		case ".go":
			unit, find = path.Dir(name), checkGo
		case ".md":
			find = checkMarkdown
		default:
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		found, err := find(name, text)
		units[unit] = append(units[unit], found...)
		return err
	})
	return units, err
}

func readCeilings(file string) (map[string]counts, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	ceilings := make(map[string]counts)
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if len(fields) != 1+int(kinds) {
			return nil, fmt.Errorf("%s: %q: want a unit and %d numbers", file, line, kinds)
		}
		var c counts
		for k := range c {
			if c[k], err = strconv.Atoi(fields[1+k]); err != nil {
				return nil, fmt.Errorf("%s: %q: %w", file, line, err)
			}
		}
		ceilings[fields[0]] = c
	}
	return ceilings, nil
}

// lowerCeilings writes file again with ceilings that no count stays below.
func lowerCeilings(file string, ceilings map[string]counts, units map[string][]finding) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var text strings.Builder
	for line := range strings.Lines(string(old)) {
		if strings.HasPrefix(line, "#") {
			text.WriteString(line)
		}
	}

	for _, unit := range slices.Sorted(maps.Keys(ceilings)) {
		var n counts
		for _, f := range units[unit] {
			n[f.kind]++
		}
		for k := range n {
			n[k] = min(n[k], ceilings[unit][k])
		}
		if n != (counts{}) {
			fmt.Fprintf(&text, "%s %d %d %d\n", unit, n[word], n[long], n[wide])
		}
	}
	return os.WriteFile(file, []byte(text.String()), 0o644)
}
