package main

import (
	"testing"
	"testing/fstest"
)

func TestCodeLines(t *testing.T) {
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
			if got := codeLines([]byte(tc.text)); got != tc.want {
				t.Errorf("codeLines(%q) = %d, want %d", tc.text, got, tc.want)
			}
		})
	}
}

func TestCount(t *testing.T) {
	t.Parallel()
	one := &fstest.MapFile{Data: []byte("package p\n")}
	counts, err := count(fstest.MapFS{
		"relaycore/relay/a.go":           one,
		"relaycore/relay/a_test.go":      one,
		"relaycore/internal/engine/b.go": one,
		"relay-nats/main.go":             one,
		"relay-nats/natsrelay/c.go":      one,
		"relay-nats/testdata/d.go":       one,
		"e2e/x.go":                       one,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"relaycore/relay": 1, "relaycore/internal/engine": 1, "relay-nats": 2}
	if len(counts) != len(want) {
		t.Errorf("count = %v, want %v", counts, want)
	}
	for unit, n := range want {
		if counts[unit] != n {
			t.Errorf("count of %s = %d, want %d", unit, counts[unit], n)
		}
	}
}
