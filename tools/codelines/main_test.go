package main

import (
	"testing"
	"testing/fstest"
)

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
