// Figures prints a Markdown table of the sizes of the backends and of relaycore's
// packages. It has files, code lines, the largest type with methods, and how many
// functions of the package a message passes. With two trees it compares them.
//
//	figures BEFORE [AFTER]
//
// The last figure counts the package's functions that can be reached from the
// methods through which messages enter it. Calls are resolved by name, so it is
// an upper bound, and the same one for both trees.
package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/grove/pgtrickle-relay/tools/internal/code"
)

// entries are the methods through which messages enter a package.
var entries = []string{"Run", "Receive", "Publish", "Checkpoint", "Committed", "Ack"}

type figures struct {
	files, lines    int
	typ             string // the one with methods that has the most fields
	fields, methods int
	way             int
}

func (f figures) String() string {
	if f.files == 0 {
		return "– | – | – | –"
	}
	return fmt.Sprintf("%d | %d | %s | %s", f.files, f.lines,
		cmp.Or(f.typ, "–")+suffix(f.typ, f.fields, f.methods), cmp.Or(strings.TrimPrefix(fmt.Sprint(f.way), "0"), "–"))
}

func suffix(typ string, fields, methods int) string {
	if typ == "" {
		return ""
	}
	return fmt.Sprintf(" %d/%d", fields, methods)
}

func main() {
	if len(os.Args) < 2 || len(os.Args) > 3 {
		fmt.Fprintln(os.Stderr, "usage: figures BEFORE [AFTER]")
		os.Exit(2)
	}
	var trees []map[string]figures
	units := make(map[string]bool)
	for _, root := range os.Args[1:] {
		tree, err := measure(root)
		if err != nil {
			fmt.Fprintln(os.Stderr, "figures:", err)
			os.Exit(1)
		}
		trees = append(trees, tree)
		for unit := range tree {
			units[unit] = true
		}
	}

	columns := " files | code lines | largest type, fields/methods | functions on the way |"
	fmt.Println("| package |" + strings.Repeat(columns, len(trees)))
	fmt.Println("|---" + strings.Repeat("|---", 4*len(trees)) + "|")
	for _, unit := range slices.Sorted(maps.Keys(units)) {
		fmt.Printf("| %s |", unit)
		for _, tree := range trees {
			fmt.Printf(" %v |", tree[unit])
		}
		fmt.Println()
	}
}

// unitOf returns the unit of a package's directory: a backend's module, or a
// package of relaycore; "" when it is not measured.
func unitOf(dir string) string {
	first, _, _ := strings.Cut(dir, "/")
	switch {
	case first == "relaycore":
		return dir
	case strings.HasPrefix(first, "relay-"):
		return first
	}
	return ""
}

func measure(root string) (map[string]figures, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	parsed, lines := make(map[string][]*ast.File), make(map[string]int)
	fset := token.NewFileSet()
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == "testdata" || strings.HasPrefix(entry.Name(), ".") && path != root) {
			return fs.SkipDir
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		unit := unitOf(filepath.ToSlash(dir))
		if unit == "" || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(fset, path, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		lines[unit] += code.Lines(text)
		parsed[unit] = append(parsed[unit], file)
		return nil
	})
	tree := make(map[string]figures)
	for unit, files := range parsed {
		tree[unit] = measured(files, lines[unit])
	}
	return tree, err
}

func measured(files []*ast.File, lines int) figures {
	f := figures{files: len(files), lines: lines}
	fields, methods := make(map[string]int), make(map[string]int)
	calls := make(map[string]map[string]bool) // by function name
	for _, file := range files {
		for n := range ast.Preorder(file) {
			switch n := n.(type) {
			case *ast.TypeSpec:
				if s, ok := n.Type.(*ast.StructType); ok {
					for _, field := range s.Fields.List {
						fields[n.Name.Name] += max(1, len(field.Names))
					}
				}
			case *ast.FuncDecl:
				methods[receiver(n)]++
				callees(n, calls)
			}
		}
	}

	for _, typ := range slices.Sorted(maps.Keys(fields)) {
		if n := fields[typ]; methods[typ] > 0 && n > f.fields {
			f.typ, f.fields, f.methods = typ, n, methods[typ]
		}
	}
	f.way = reach(calls)
	return f
}

func receiver(fn *ast.FuncDecl) string {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return ""
	}
	x := fn.Recv.List[0].Type
	for {
		switch t := x.(type) {
		case *ast.StarExpr:
			x = t.X
		case *ast.IndexExpr:
			x = t.X
		case *ast.IndexListExpr:
			x = t.X
		case *ast.Ident:
			return t.Name
		default:
			return ""
		}
	}
}

func callees(fn *ast.FuncDecl, calls map[string]map[string]bool) {
	to := calls[fn.Name.Name]
	if to == nil {
		to = make(map[string]bool)
		calls[fn.Name.Name] = to
	}
	for n := range ast.Preorder(fn) {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			continue
		}
		switch f := call.Fun.(type) {
		case *ast.Ident:
			to[f.Name] = true
		case *ast.SelectorExpr:
			to[f.Sel.Name] = true
		}
	}
}

func reach(calls map[string]map[string]bool) int {
	seen := make(map[string]bool)
	var visit func(name string)
	visit = func(name string) {
		to, ours := calls[name]
		if !ours || seen[name] {
			return
		}
		seen[name] = true
		for callee := range to {
			visit(callee)
		}
	}
	for _, entry := range entries {
		visit(entry)
	}
	return len(seen)
}
