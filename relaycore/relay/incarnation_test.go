package relay_test

import (
	"fmt"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func TestIncarnation(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ in, position string }{
		{"", ""},
		{"", "orders 1 2"},
		{"2026-01-02T03:04:05Z", "orders 17"},
		{"a;b=c d%", `{"ends":{"t":[1]}}`},
		{"x", "incarnation=y;z"},
	} {
		stored := relay.Incarnation(tc.in).Join(tc.position)
		in, position := relay.SplitPosition(stored)
		if string(in) != tc.in || position != tc.position {
			t.Errorf("SplitPosition(%q) = %q, %q, want %q, %q", stored, in, position, tc.in, tc.position)
		}
	}
	for _, old := range []string{`{"time":1}`, "orders 123 456", "incarnation=", "incarnation=%;x"} {
		if in, position := relay.SplitPosition(old); in != "" || position != old {
			t.Errorf("SplitPosition(%q) = %q, %q, want it as it is", old, in, position)
		}
	}
}

func ExampleIncarnation() {
	created := relay.Incarnation("2026-03-01T10:00:00Z")
	stored := created.Join("4711")

	// Later, the stream was deleted and created again.
	now := relay.Incarnation("2026-03-02T08:30:00Z")
	was, position := relay.SplitPosition(stored)
	if !was.Same(now) {
		position = "0"
	}
	fmt.Println(position)
	// Output: 0
}
