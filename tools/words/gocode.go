package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"unicode/utf8"
)

// checkGo checks the comments of a Go file, the names that it declares, its
// errors and its log messages. Tests and the documentation of a configuration's
// keys may have wide lines.
func checkGo(name string, text []byte) ([]finding, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	if ast.IsGenerated(file) {
		return nil, nil
	}

	c := goFile{name: name, fset: fset, test: strings.HasSuffix(name, "_test.go")}
	for i, line := range strings.Split(string(text), "\n") {
		if width := utf8.RuneCountInString(line); width > maxGo && !c.test && !strings.Contains(line, "doc:\"") {
			c.add(wide, i+1, fmt.Sprintf("%d columns, at most %d", width, maxGo))
		}
	}
	for _, group := range file.Comments {
		c.comment(group)
	}
	for n := range ast.Preorder(file) {
		c.node(n)
	}
	return c.found, nil
}

type goFile struct {
	name  string
	fset  *token.FileSet
	test  bool
	found []finding
}

func (c *goFile) add(k kind, line int, text string) {
	c.found = append(c.found, finding{k, line, c.name, text})
}

func (c *goFile) line(pos token.Pos) int { return c.fset.Position(pos).Line }

func (c *goFile) comment(group *ast.CommentGroup) {
	first := c.line(group.Pos())
	lines := joined(strings.Split(group.Text(), "\n")) // without directives
	for i, line := range lines {
		if isCode(line) {
			continue
		}
		for _, hit := range neverWords(plain(line)) {
			c.add(word, first+i, hit)
		}
	}
	for at, paragraph := range paragraphs(lines) {
		for _, sentence := range longSentences(plain(paragraph)) {
			c.add(long, first+at, sentence)
		}
	}
}

func (c *goFile) node(n ast.Node) {
	switch n := n.(type) {
	case *ast.FuncDecl:
		c.identifier(n.Name)
	case *ast.TypeSpec:
		c.identifier(n.Name)
	case *ast.ValueSpec:
		for _, name := range n.Names {
			c.identifier(name)
		}
	case *ast.Field:
		for _, name := range n.Names {
			c.identifier(name)
		}
	case *ast.CallExpr:
		c.call(n)
	}
}

func (c *goFile) identifier(name *ast.Ident) {
	if identifiers.MatchString(name.Name) {
		c.add(word, c.line(name.Pos()), "the name "+name.Name)
	}
}

// call checks the text of an error or a log message.
func (c *goFile) call(call *ast.CallExpr) {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || c.test {
		return
	}
	limit := 0
	switch method := selector.Sel.Name; method {
	case "Errorf", "New":
		if pkg := nameOf(selector.X); pkg == "fmt" || pkg == "errors" {
			limit = maxError
		}
	case "Debug", "Info", "Warn", "Error", "DebugContext", "InfoContext", "WarnContext", "ErrorContext":
		if strings.Contains(strings.ToLower(nameOf(selector.X)), "log") {
			limit = maxLog
		}
	}
	if limit == 0 {
		return
	}

	for _, arg := range call.Args {
		literal, ok := arg.(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			continue
		}
		text, err := strconv.Unquote(literal.Value)
		if err != nil {
			continue
		}
		for _, hit := range neverWords(plain(text)) {
			c.add(word, c.line(literal.Pos()), hit)
		}
		if n := countWords(text); n > limit {
			c.add(long, c.line(literal.Pos()), fmt.Sprintf("a message of %d words, at most %d", n, limit))
		}
		return
	}
}

// nameOf returns the last name of an expression such as s.env.Log or log(ctx).
func nameOf(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return x.Sel.Name
	case *ast.CallExpr:
		return nameOf(x.Fun)
	}
	return ""
}
