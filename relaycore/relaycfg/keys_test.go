package relaycfg_test

import (
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// TestKeysAreShared: a thousand pipelines have one list of keys, and other defaults give
// another list.
func TestKeysAreShared(t *testing.T) {
	type config struct {
		Count int `json:"count"`
	}
	first := relaycfg.Keys(config{1})
	if again := relaycfg.Keys(&config{1}); &again[0] != &first[0] {
		t.Error("the same defaults give a second list")
	}
	if other := relaycfg.Keys(config{2}); string(other[0].Default) != "2" || string(first[0].Default) != "1" {
		t.Errorf("defaults %s and %s, want 2 and 1", other[0].Default, first[0].Default)
	}
}
