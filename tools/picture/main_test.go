package main

import (
	"maps"
	"slices"
	"testing"
)

func TestReduce(t *testing.T) {
	t.Parallel()
	got := reduce(map[string][]string{"a": {"b", "c", "d"}, "b": {"c"}, "c": nil, "d": nil})
	want := map[string][]string{"a": {"b", "d"}, "b": {"c"}, "c": nil, "d": nil}
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("reduce = %v, want %v", got, want)
	}
}

func TestNode(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		module + "relaycore/relay":                "relay",
		module + "relaycore/internal/engine":      "internal/engine",
		module + "relay-nats/natsrelay":           "backends",
		module + "relay-all":                      "relay-all",
		module + "relaycore/relaytest":            "",
		module + "relaycore/internal/exttest":     "",
		module + "relay-nats/internal/nothing":    "backends",
		module + "e2e/internal/rig":               "",
		module + "tools/words":                    "",
		"fmt":                                     "",
		module + "relaycore/internal/outbox/scan": "internal/outbox/scan",
	} {
		if got := node(path); got != want {
			t.Errorf("node(%q) = %q, want %q", path, got, want)
		}
	}
}
