package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestMarkdown(t *testing.T) {
	t.Parallel()
	many := strings.Repeat("word ", maxSentence+1)
	tests := map[string]struct {
		text string
		want counts
	}{
		"plain":                       {"# Title\n\nThe relay wakes the pipeline.\n", counts{}},
		"a dead letter":               {"A dead letter parks its key.\n", counts{}},
		"a dead letter on two lines":  {"A dead\nletter parks its key.\n", counts{}},
		"a letter":                    {"A letter parks its key.\n", counts{word: 1}},
		"who and says":                {"The one who says so.\n", counts{word: 2}},
		"in a code span":              {"The key `says` is refused.\n", counts{}},
		"in a code block":             {"```\nwho says\n```\n", counts{}},
		"where the check is off":      {off + "\nwho says\n" + on + "\n", counts{}},
		"a long sentence":             {strings.ReplaceAll(many, " ", "\n") + ".\n", counts{long: 1}},
		"two short ones":              {strings.Repeat("word\n", 20) + ". A" + strings.Repeat("\nword", 20) + ".\n", counts{}},
		"a long cell":                 {"| " + many + " |\n", counts{}},
		"a wide line":                 {strings.Repeat("x", 60) + " " + strings.Repeat("y", 60) + "\n", counts{wide: 1}},
		"an address that is too wide": {"https://example.com/" + strings.Repeat("x", 100) + "\n", counts{}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found, err := checkMarkdown("a.md", []byte(tc.text))
			if err != nil {
				t.Fatal(err)
			}
			if got := count(found); got != tc.want {
				t.Errorf("checkMarkdown(%q) = %v, want %v: %v", tc.text, got, tc.want, found)
			}
		})
	}
}

func TestGo(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		text string
		want counts
	}{
		"a comment":             {"// f tells nobody.\nfunc f() {}\n", counts{word: 2}},
		"code in a comment":     {"// f runs.\n//\n//\tsay hello\nfunc f() {}\n", counts{}},
		"a directive":           {"func f() {} //nolint:unused // who\n", counts{}},
		"a name":                {"type t struct{ saidHeld, mostRows int }\n", counts{word: 2}},
		"an error":              {"var err = errors.New(\"nobody answers\")\n", counts{word: 1}},
		"a long log message":    {"func f() { s.log.Info(\"one two three four five six seven\", \"k\", 1) }\n", counts{long: 1}},
		"a short log message":   {"func f() { s.log.Info(\"pipeline started\", \"name\", 1) }\n", counts{}},
		"another Info":          {"func f() { t.Info(\"one two three four five six seven\") }\n", counts{}},
		"a line that is wide":   {"var s = \"" + strings.Repeat("x", maxGo) + "\"\n", counts{wide: 1}},
		"an error of one claim": {"var err = fmt.Errorf(\"open %s: no such table; create it\", name)\n", counts{}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found, err := checkGo("a.go", []byte("package p\n\n"+tc.text))
			if err != nil {
				t.Fatal(err)
			}
			if got := count(found); got != tc.want {
				t.Errorf("checkGo(%q) = %v, want %v: %v", tc.text, got, tc.want, found)
			}
		})
	}
}

func TestParagraphs(t *testing.T) {
	t.Parallel()
	lines := strings.Split("a\nb\n\n- c\n  d\n- e\n\n    code\nf", "\n")
	got := paragraphs(lines)
	if starts := slices.Sorted(maps.Keys(got)); !slices.Equal(starts, []int{0, 3, 5, 8}) {
		t.Errorf("paragraphs begin at %v, want [0 3 5 8]: %v", starts, got)
	}
}

func count(found []finding) counts {
	var n counts
	for _, f := range found {
		n[f.kind]++
	}
	return n
}
