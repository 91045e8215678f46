package outbox_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// maxWay bounds the functions that a call of Receive passes before it meets a row.
const maxWay = 20

// TestWayToTheFirstRow walks the source from Source.Receive to Builder.Row in the order
// of the calls. It counts the functions of the outbox packages on that way:
//
//   - A call is followed when it is met, once per function, and so are the calls in it.
//   - Loops and conditions are walked. A branch is walked only if it leads to the row.
//     The others are detours: opening the outbox again, looking for changes once a
//     second, listing locks, handling an error. Deferred calls come too late.
//   - A function literal or a method value is walked where it is called. A call through
//     an interface goes to the type that implements it for the strategy.
//
// A file is entered by the call of a function in it from another file. No file may be
// entered twice.
func TestWayToTheFirstRow(t *testing.T) {
	t.Parallel()
	src := load(t)
	for strategy, impl := range map[string]map[string]string{
		"window": {"Scanner": "windows", "DB": "Session", "connector": "pool"},
		"fence":  {"Scanner": "fence", "DB": "Session", "connector": "pool"},
	} {
		w := &walk{source: src, impl: impl, bound: make(map[types.Object]target), goal: "Builder.Row"}
		if !w.function(src.named["Source.Receive"], nil) {
			t.Fatalf("%s: the way does not lead to a row:\n%s", strategy, strings.Join(w.passed, "\n"))
		}
		way := strings.Join(w.passed, "\n")
		t.Logf("%s, %d functions:\n%s", strategy, len(w.passed), way)
		if len(w.passed) > maxWay {
			t.Errorf("%s: %d functions on the way to the first row, want at most %d:\n%s", strategy, len(w.passed), maxWay, way)
		}
		seen := make(map[string]bool)
		for _, file := range w.entered {
			if seen[file] {
				t.Errorf("%s: %s is entered twice:\n%s", strategy, file, way)
			}
			seen[file] = true
		}
	}
}

// source is the checked source of the outbox packages.
type source struct {
	fset  *token.FileSet
	info  *types.Info
	decls map[types.Object]*ast.FuncDecl
	named map[string]*ast.FuncDecl // by "Type.Method"
}

// load checks the packages one by one. What they import from elsewhere is left empty,
// and errors that follow from that are ignored.
func load(t *testing.T) *source {
	t.Helper()
	s := &source{
		fset:  token.NewFileSet(),
		info:  &types.Info{Uses: make(map[*ast.Ident]types.Object), Defs: make(map[*ast.Ident]types.Object), Selections: make(map[*ast.SelectorExpr]*types.Selection)},
		decls: make(map[types.Object]*ast.FuncDecl),
		named: make(map[string]*ast.FuncDecl),
	}
	done := imports{}
	for _, dir := range []string{"table", "rows", "scan", "pace", "progress", "."} {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		var files []*ast.File
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(s.fset, name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		path := strings.TrimSuffix("github.com/grove/pgtrickle-relay/relaycore/internal/outbox/"+dir, "/.")
		config := types.Config{Importer: done, Error: func(error) {}}
		done[path], _ = config.Check(path, s.fset, files, s.info)
		for _, f := range files {
			s.index(f)
		}
	}
	return s
}

func (s *source) index(f *ast.File) {
	for _, d := range f.Decls {
		decl, ok := d.(*ast.FuncDecl)
		if !ok || decl.Body == nil {
			continue
		}
		s.decls[s.info.Defs[decl.Name]] = decl
		if decl.Recv != nil {
			receiver := strings.TrimPrefix(types.ExprString(decl.Recv.List[0].Type), "*")
			s.named[receiver+"."+decl.Name.Name] = decl
		}
	}
}

// imports are the packages that are checked.
type imports map[string]*types.Package

func (i imports) Import(path string) (*types.Package, error) {
	if p := i[path]; p != nil {
		return p, nil
	}
	p := types.NewPackage(path, filepath.Base(path))
	p.MarkComplete()
	return p, nil
}

// walk is one walk; its methods report whether the goal was reached.
type walk struct {
	*source
	impl  map[string]string // type that implements an interface
	goal  string
	bound map[types.Object]target // values of parameters, fields and variables

	passed  []string // functions
	entered []string // files
}

// target is a function value: a declared one, or a literal in the file of its function.
type target struct {
	decl *ast.FuncDecl
	lit  *ast.FuncLit
	in   *ast.FuncDecl
}

func (w *walk) file(decl *ast.FuncDecl) string { return w.fset.Position(decl.Pos()).Filename }

func (w *walk) name(decl *ast.FuncDecl) string {
	for name, d := range w.named {
		if d == decl {
			return name
		}
	}
	return decl.Name.Name
}

func (w *walk) function(decl, from *ast.FuncDecl) bool {
	if w.name(decl) == w.goal {
		w.enter(decl, from)
		return true
	}
	line := fmt.Sprintf("%-20s %s", w.file(decl), w.name(decl))
	if slices.Contains(w.passed, line) {
		return false
	}
	w.passed = append(w.passed, line)
	w.enter(decl, from)
	return w.node(decl.Body, decl)
}

func (w *walk) enter(decl, from *ast.FuncDecl) {
	if from == nil || w.file(from) != w.file(decl) {
		w.entered = append(w.entered, w.file(decl))
	}
}

// node walks the calls below n in order.
func (w *walk) node(n ast.Node, in *ast.FuncDecl) (found bool) {
	if n == nil {
		return false
	}
	ast.Inspect(n, func(n ast.Node) bool {
		if found {
			return false
		}
		switch n := n.(type) {
		case *ast.FuncLit, *ast.DeferStmt, *ast.GoStmt:
			return false
		case *ast.IfStmt:
			found = n.Init != nil && w.node(n.Init, in) || w.node(n.Cond, in) || w.branch(n.Body, in) || n.Else != nil && w.branch(n.Else, in)
			return false
		case *ast.CaseClause:
			found = w.branch(&ast.BlockStmt{List: n.Body}, in)
			return false
		case *ast.AssignStmt:
			for i, lhs := range n.Lhs {
				if id, ok := lhs.(*ast.Ident); ok && len(n.Lhs) == len(n.Rhs) {
					w.bind(w.object(id), n.Rhs[i], in)
				}
			}
		case *ast.KeyValueExpr:
			if id, ok := n.Key.(*ast.Ident); ok {
				w.bind(w.info.Uses[id], n.Value, in)
			}
		case *ast.CallExpr:
			found = w.call(n, in)
			return false
		}
		return true
	})
	return found
}

// branch walks a block, and forgets it if the goal is not in it.
func (w *walk) branch(block ast.Node, in *ast.FuncDecl) bool {
	passed, entered, bound := slices.Clone(w.passed), slices.Clone(w.entered), maps.Clone(w.bound)
	if w.node(block, in) {
		return true
	}
	w.passed, w.entered, w.bound = passed, entered, bound
	return false
}

func (w *walk) call(call *ast.CallExpr, in *ast.FuncDecl) bool {
	if w.node(call.Fun, in) {
		return true
	}
	for _, arg := range call.Args {
		if w.node(arg, in) {
			return true
		}
	}
	to, ok := w.value(call.Fun, in)
	switch {
	case !ok:
		return false
	case to.lit != nil:
		return w.node(to.lit.Body, to.in)
	}
	w.parameters(to.decl, call.Args, in)
	return w.function(to.decl, in)
}

// parameters binds the parameters of a function to functions that are passed to it.
func (w *walk) parameters(decl *ast.FuncDecl, args []ast.Expr, in *ast.FuncDecl) {
	i := 0
	for _, field := range decl.Type.Params.List {
		for _, name := range field.Names {
			if i < len(args) {
				w.bind(w.info.Defs[name], args[i], in)
			}
			i++
		}
	}
}

func (w *walk) bind(to types.Object, e ast.Expr, in *ast.FuncDecl) {
	if v, ok := w.value(e, in); ok && to != nil {
		w.bound[to] = v
	}
}

func (w *walk) object(id *ast.Ident) types.Object {
	if o := w.info.Defs[id]; o != nil {
		return o
	}
	return w.info.Uses[id]
}

// value returns the function that an expression stands for, if it is known.
func (w *walk) value(e ast.Expr, in *ast.FuncDecl) (target, bool) {
	var o types.Object
	switch e := e.(type) {
	case *ast.FuncLit:
		return target{lit: e, in: in}, true
	case *ast.Ident:
		o = w.object(e)
	case *ast.SelectorExpr:
		o = w.info.Uses[e.Sel]
		if s := w.info.Selections[e]; s != nil && types.IsInterface(s.Recv()) {
			if named, ok := s.Recv().(*types.Named); ok {
				decl := w.named[w.impl[named.Obj().Name()]+"."+e.Sel.Name]
				return target{decl: decl}, decl != nil
			}
		}
	}
	if decl := w.decls[o]; decl != nil {
		return target{decl: decl}, true
	}
	v, ok := w.bound[o]
	return v, ok
}
