package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// voice prints what happens, in colour on a terminal.
type voice struct{ colour bool }

var say = voice{colour: isTerminal()}

func isTerminal() bool {
	info, err := os.Stdout.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == ""
}

func (v voice) paint(code, text string) string {
	if !v.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (v voice) step(text string)            { fmt.Println("\n" + v.paint("1;36", "== "+text)) }
func (v voice) line(text string)            { fmt.Println("   " + text) }
func (v voice) linef(f string, args ...any) { v.line(fmt.Sprintf(f, args...)) }
func (v voice) good(f string, args ...any) {
	fmt.Println(v.paint("32", "   ok ") + fmt.Sprintf(f, args...))
}

func (v voice) bad(f string, args ...any) {
	fmt.Println(v.paint("1;31", "   WRONG ") + fmt.Sprintf(f, args...))
}

// code prints what an operator would type.
func (v voice) code(text string) {
	for l := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		fmt.Println("   " + v.paint("2", "| "+l))
	}
}

func (v voice) done(took time.Duration) {
	fmt.Println("\n" + v.paint("1;32", fmt.Sprintf("Nothing lost, nothing twice, every order's changes in order. %.0f s.", took.Seconds())))
}

func (v voice) failed(err error) {
	if !errors.Is(err, errSaid) {
		fmt.Fprintln(os.Stderr, "\n"+v.paint("1;31", "demo: "+err.Error()))
	}
}
