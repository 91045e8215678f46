package docs

import (
	"fmt"
	"strings"
)

// block is one fenced or hidden block of a page.
type block struct {
	line   int // of its first line of text, counted from 1
	lang   string
	info   string // behind the language
	text   string
	output *block // what it prints; nil when the page does not show it
}

func (b block) runs() bool  { return b.info == "run" || b.info == "run wait" }
func (b block) waits() bool { return b.info == "run wait" }

// parse returns the shell and SQL blocks of a page. Each states whether it runs.
func parse(page string) ([]block, error) {
	var blocks []block
	var open *block
	end := ""
	for i, line := range strings.Split(page, "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case open != nil && trimmed == end:
			done := *open
			open = nil
			if err := accept(&blocks, done); err != nil {
				return nil, err
			}
		case open != nil:
			open.text += line + "\n"
		case strings.HasPrefix(trimmed, "```"):
			open, end = newBlock(i+2, strings.TrimPrefix(trimmed, "```")), "```"
		case strings.HasPrefix(trimmed, "<!-- sh run"), strings.HasPrefix(trimmed, "<!-- sql run"):
			open, end = newBlock(i+2, strings.TrimPrefix(trimmed, "<!-- ")), "-->"
		}
	}
	if open != nil {
		return nil, fmt.Errorf("line %d: the block has no end", open.line)
	}
	return blocks, nil
}

func newBlock(line int, header string) *block {
	lang, info, _ := strings.Cut(header, " ")
	return &block{line: line, lang: lang, info: strings.TrimSpace(info)}
}

// accept appends a block that runs, or gives its output to the block before it.
func accept(blocks *[]block, b block) error {
	switch {
	case b.lang == "text" && b.info == "output":
		if len(*blocks) == 0 {
			return fmt.Errorf("line %d: output without a block before it", b.line)
		}
		last := &(*blocks)[len(*blocks)-1]
		if last.output != nil || !last.runs() {
			return fmt.Errorf("line %d: the block before this output does not run, or has an output", b.line)
		}
		last.output = &b
	case b.lang == "sh", b.lang == "sql":
		if !b.runs() && !strings.HasPrefix(b.info, "skip: ") {
			return fmt.Errorf("line %d: mark the block as '%s run', or as '%s skip: WHY'", b.line, b.lang, b.lang)
		}
		*blocks = append(*blocks, b)
	case b.lang == "bash", b.lang == "shell", b.lang == "console":
		return fmt.Errorf("line %d: write %s blocks as sh", b.line, b.lang)
	}
	return nil
}

// matches reports whether got is what a page shows. In want … stands for any
// text within a line, and a line of its own for any lines.
func matches(want, got string) bool {
	return matchLines(lines(want), lines(got))
}

func lines(text string) []string {
	var out []string
	for line := range strings.Lines(strings.TrimSpace(text)) {
		if line = strings.TrimRight(line, " \n"); line != "" {
			out = append(out, line)
		}
	}
	return out
}

func matchLines(want, got []string) bool {
	for i, line := range want {
		if line == "…" {
			for skip := range len(got) - i + 1 {
				if matchLines(want[i+1:], got[i+skip:]) {
					return true
				}
			}
			return false
		}
		if i >= len(got) || !matchLine(line, got[i]) {
			return false
		}
	}
	return len(want) == len(got)
}

func matchLine(want, got string) bool {
	head, rest, any := strings.Cut(want, "…")
	if !any {
		return want == got
	}
	if !strings.HasPrefix(got, head) {
		return false
	}
	for i := len(head); i <= len(got); i++ {
		if matchLine(rest, got[i:]) {
			return true
		}
	}
	return false
}
