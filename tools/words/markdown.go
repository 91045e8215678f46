package main

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	off = "<!-- words: off -->"
	on  = "<!-- words: on -->"
)

// checkMarkdown checks a page. Code blocks are left out. Rows of tables may be
// wide, and their cells are no sentences.
func checkMarkdown(name string, text []byte) ([]finding, error) {
	var found []finding
	lines := joined(strings.Split(string(text), "\n"))
	fence, hidden, quiet := false, false, false
	for i, line := range lines {
		trimmed := strings.TrimSpace(line)
		marker := strings.HasPrefix(trimmed, "```")
		comment := hidden || strings.HasPrefix(trimmed, "<!--")
		hidden = comment && !strings.HasSuffix(trimmed, "-->")
		switch {
		case marker:
			fence = !fence
		case trimmed == off:
			quiet = true
		case trimmed == on:
			quiet = false
		}
		table := strings.HasPrefix(trimmed, "|")

		if fence || marker || comment {
			lines[i] = ""
			continue
		}
		if width := utf8.RuneCountInString(line); width > maxMarkdown && !table && strings.Contains(trimmed, " ") {
			found = append(found, finding{wide, i + 1, name, fmt.Sprintf("%d columns, at most %d", width, maxMarkdown)})
		}
		if quiet {
			lines[i] = ""
			continue
		}
		if !isCode(line) {
			for _, hit := range neverWords(plain(line)) {
				found = append(found, finding{word, i + 1, name, hit})
			}
		}
		if table || strings.HasPrefix(trimmed, "#") {
			lines[i] = ""
		}
	}

	for at, paragraph := range paragraphs(lines) {
		for _, sentence := range longSentences(plain(paragraph)) {
			found = append(found, finding{long, at + 1, name, sentence})
		}
	}
	return found, nil
}
