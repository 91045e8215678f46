package main

import (
	"regexp"
	"strings"
)

const (
	maxSentence = 25  // words
	maxError    = 20  // words
	maxLog      = 6   // words
	maxMarkdown = 100 // columns
	maxGo       = 140 // columns
)

// rules maps what is not written to what is written in its place.
var rules = []struct {
	never *regexp.Regexp
	use   string
}{
	{phrase(`letters?`), "dead letter"},
	{phrase(`bells?|rings the`), "wake, notify"},
	{phrase(`bury|buries|buried`), "dead-letter, discard"},
	{phrase(`says?|said|saying|tells?|told`), "report, log, warn, print, state"},
	{phrase(`who|whom|whoever|whomever`), "the actor's name"},
	{phrase(`somebody|nobody|anybody|everybody|someone|he|him|his`), "the actor's name"},
	{phrase(`(?:does|do) no longer`), "no longer <verb>"},
	{phrase(`any more|(?:is|are|was|were) no more`), "no longer"},
	{phrase(`takes no|does not take|do not take`), "refuses, needs no"},
	{phrase(`anew`), "again"},
	{phrase(`heirs?|predecessors?`), "the next owner, the last owner"},
	{phrase(`goe?s? on from`), "resumes from"},
	{phrase(`cuts? off|breaks? off|broken? off`), "disconnect, cancel"},
	{phrase(`all the same|lest|be it|though it be|at the most|done with`), "plain words"},
}

// allowed are phrases that hold a word of the rules and are right.
var allowed = phrase(`dead[- ]letters?|(?:first|capital|lower-case|upper-case|case|small) letters?|letters?,? (?:and|or)?\s*digits`)

// identifiers are names that the rules replace.
var identifiers = regexp.MustCompile(`^(?:(?:say|said)(?:[A-Z].*)?|(?:most|least)[A-Z].*|bell|letters?|bury|heir|pulse|of)$`)

func phrase(alternatives string) *regexp.Regexp {
	return regexp.MustCompile(`(?i)\b(?:` + alternatives + `)\b`)
}

// neverWords returns what text holds of the rules' words, each with its cure.
func neverWords(text string) []string {
	text = allowed.ReplaceAllString(text, " ")
	var found []string
	for _, r := range rules {
		for _, hit := range r.never.FindAllString(text, -1) {
			found = append(found, hit+": use "+r.use)
		}
	}
	return found
}

var (
	sentenceEnd   = regexp.MustCompile(`[.!?][)"*_]*(?:\s+|$)|:\s*$`)
	codeSpan      = regexp.MustCompile("`[^`\n]*`|\"[^\"\n]*\"")
	link          = regexp.MustCompile(`\]\([^)]*\)`)
	brokenLetter  = regexp.MustCompile(`(?i)\bdead\s*$`)
	leadingLetter = regexp.MustCompile(`^\s*letters?\b`)
	hasLetter     = regexp.MustCompile(`[\pL\pN]`)
)

// joined joins a dead letter that a line break divides, so that each line can
// be checked alone.
func joined(lines []string) []string {
	for i := 1; i < len(lines); i++ {
		if brokenLetter.MatchString(lines[i-1]) {
			lines[i] = leadingLetter.ReplaceAllString(lines[i], "")
		}
	}
	return lines
}

// plain replaces code, quotations and the targets of links by one word.
func plain(text string) string {
	return link.ReplaceAllString(codeSpan.ReplaceAllString(text, "code"), "]")
}

// longSentences returns the sentences of a paragraph that are too long.
func longSentences(paragraph string) []string {
	var found []string
	for _, sentence := range sentenceEnd.Split(paragraph, -1) {
		if countWords(sentence) > maxSentence {
			found = append(found, sentence)
		}
	}
	return found
}

func countWords(text string) int {
	n := 0
	for field := range strings.FieldsSeq(text) {
		if hasLetter.MatchString(field) {
			n++
		}
	}
	return n
}

var item = regexp.MustCompile(`^\s*(?:[-*]|\d+\.)\s+`)

// paragraphs splits text into paragraphs and list items. Each is the line on
// which it begins, counted from 0, and its words. Code that is indented is left
// out.
func paragraphs(lines []string) map[int]string {
	out := make(map[int]string)
	at := -1
	for i, line := range lines {
		switch {
		case strings.TrimSpace(line) == "", isCode(line) && at < 0:
			at = -1
			continue
		case item.MatchString(line):
			at = i
			line = item.ReplaceAllString(line, "")
		case at < 0:
			at = i
		}
		out[at] += strings.TrimSpace(line) + " "
	}
	return out
}

func isCode(line string) bool {
	return (strings.HasPrefix(line, "\t") || strings.HasPrefix(line, "    ")) && !item.MatchString(line)
}
