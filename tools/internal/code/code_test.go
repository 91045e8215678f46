package code

import "testing"

func TestLines(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		text string
		want int
	}{
		"empty":                   {"", 0},
		"comments and blanks":     {"// a\n\n/* b\nc */\npackage p\n", 1},
		"a raw string":            {"package p\n\nvar s = `a\n\nb`\n", 4},
		"a comment behind code":   {"package p // a\n\nvar x = 1 /* b\n*/\n", 2},
		"a call on three lines":   {"package p\n\nvar x = f(\n\t1,\n)\n", 4},
		"no newline at its end":   {"package p\nvar x int", 2},
		"code between comments":   {"package p\n/* a */ var x int /* b */\n", 2},
		"a comment marker quoted": {"package p\nvar s = \"// a\"\n", 2},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := Lines([]byte(tc.text)); got != tc.want {
				t.Errorf("Lines(%q) = %d, want %d", tc.text, got, tc.want)
			}
		})
	}
}
