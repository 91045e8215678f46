package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// printer prints the progress of the demo, in colour on a terminal.
type printer struct{ colour bool }

var show = printer{colour: isTerminal()}

func isTerminal() bool {
	info, err := os.Stdout.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == ""
}

func (p printer) paint(code, text string) string {
	if !p.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (p printer) step(text string)            { fmt.Println("\n" + p.paint("1;36", "== "+text)) }
func (p printer) line(text string)            { fmt.Println("   " + text) }
func (p printer) linef(f string, args ...any) { p.line(fmt.Sprintf(f, args...)) }
func (p printer) good(f string, args ...any) {
	fmt.Println(p.paint("32", "   ok ") + fmt.Sprintf(f, args...))
}

func (p printer) bad(f string, args ...any) {
	fmt.Println(p.paint("1;31", "   WRONG ") + fmt.Sprintf(f, args...))
}

// code prints what an operator types.
func (p printer) code(text string) {
	for l := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		fmt.Println("   " + p.paint("2", "| "+l))
	}
}

func (p printer) done(took time.Duration) {
	text := fmt.Sprintf("Every change arrived exactly once, and the changes of each order in their order. %.0f s.", took.Seconds())
	fmt.Println("\n" + p.paint("1;32", text))
}

func (p printer) failed(err error) {
	if !errors.Is(err, errReported) {
		fmt.Fprintln(os.Stderr, "\n"+p.paint("1;31", "demo: "+err.Error()))
	}
}
