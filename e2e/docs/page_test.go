package docs

import "testing"

func TestMatches(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		want, got string
		match     bool
	}{
		"equal":                   {"a\nb\n", "a\nb\n", true},
		"another line":            {"a\nb\n", "a\nc\n", false},
		"a line too many":         {"a\n", "a\nb\n", false},
		"a line too few":          {"a\nb\n", "a\n", false},
		"space at the end":        {"a\n", "a  \n\n", true},
		"any text":                {"id … ok\n", "id 17 ok\n", true},
		"any text, another end":   {"id … ok\n", "id 17 no\n", false},
		"two times any text":      {"…=1 …=2\n", "a=1 b=2\n", true},
		"any lines":               {"a\n…\nd\n", "a\nb\nc\nd\n", true},
		"any lines, none":         {"a\n…\nd\n", "a\nd\n", true},
		"any lines, another end":  {"a\n…\nd\n", "a\nb\ne\n", false},
		"any lines at the end":    {"a\n…\n", "a\nb\n", true},
		"nothing where all is":    {"", "", true},
		"nothing where some were": {"a", "", false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := matches(tc.want, tc.got); got != tc.match {
				t.Errorf("matches(%q, %q) = %v, want %v", tc.want, tc.got, got, tc.match)
			}
		})
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	page := "# T\n\n```sh run\nls\n```\n\n```text output\na\n```\n\n<!-- sql run\nSELECT 1\n-->\n\n```go\nx\n```\n\n```sh skip: needs a cloud\nrm\n```\n"
	blocks, err := parse(page)
	if err != nil {
		t.Fatal(err)
	}
	if len(blocks) != 3 {
		t.Fatalf("parse found %d blocks, want 3: %+v", len(blocks), blocks)
	}
	if b := blocks[0]; b.text != "ls\n" || b.output == nil || b.output.text != "a\n" || b.line != 4 {
		t.Errorf("first block = %+v, want ls on line 4 with the output a", b)
	}
	if b := blocks[1]; b.lang != "sql" || b.text != "SELECT 1\n" || !b.runs() {
		t.Errorf("second block = %+v, want the hidden SQL block", b)
	}
	if b := blocks[2]; b.runs() {
		t.Errorf("third block = %+v, want one that does not run", b)
	}

	for name, bad := range map[string]string{
		"not marked":                "```sh\nls\n```\n",
		"no end":                    "```sh run\nls\n",
		"output without a block":    "```text output\na\n```\n",
		"output of what is not run": "```sh skip: x\nls\n```\n```text output\na\n```\n",
		"console":                   "```console\n$ ls\n```\n",
	} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%s: parse(%q) gave no error", name, bad)
		}
	}
}
