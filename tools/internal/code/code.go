// Package code counts lines of Go.
package code

import (
	"go/scanner"
	"go/token"
	"strings"
)

// Lines returns how many lines of a Go file hold a token.
func Lines(text []byte) int {
	fset := token.NewFileSet()
	file := fset.AddFile("", fset.Base(), len(text))
	var s scanner.Scanner
	s.Init(file, text, nil, 0) // without ScanComments the scanner skips them

	lines := make(map[int]bool)
	for {
		pos, tok, literal := s.Scan()
		if tok == token.EOF {
			return len(lines)
		}
		if tok == token.SEMICOLON && literal == "\n" {
			continue // inserted by the scanner
		}
		first := file.Line(pos)
		for line := range 1 + strings.Count(literal, "\n") { // a raw string has several lines
			lines[first+line] = true
		}
	}
}
