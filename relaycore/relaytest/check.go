package relaytest

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// checkArrived compares the messages that arrived with those that were sent. Each
// arrives once, with its body, and the messages of a key arrive in order.
func checkArrived(t testing.TB, h SinkHarness, got, want []relay.Message) {
	t.Helper()
	sent := make(map[string]int, len(want))
	for i := range want {
		sent[want[i].ID] = i
	}
	arrivals := make(map[string]int, len(want))
	last := make(map[string]int)
	for i := range got {
		at, ok := sent[got[i].ID]
		if !ok {
			t.Errorf("a message %q arrived that was never sent", got[i].ID)
			continue
		}
		arrivals[got[i].ID]++
		if arrivals[got[i].ID] > 1 {
			continue
		}
		if !sameBody(h, got[i].Body, want[at].Body) {
			t.Errorf("message %s arrived with body %.80q, want %.80q", got[i].ID, got[i].Body, want[at].Body)
		}
		key := want[at].Key
		if prev, ok := last[key]; ok && at < prev && !h.Unordered {
			t.Errorf("key %q: message %s arrived after %s", key, want[at].ID, want[prev].ID)
		}
		last[key] = at
	}
	for i := range want {
		switch n := arrivals[want[i].ID]; {
		case n == 0:
			t.Errorf("message %s was confirmed and never arrived", want[i].ID)
		case n > 1:
			t.Errorf("message %s arrived %d times", want[i].ID, n)
		}
		if t.Failed() && i > 50 {
			t.FailNow() // enough is known
		}
	}
}

func sameBody(h SinkHarness, got, want []byte) bool {
	if bytes.Equal(got, want) {
		return true
	}
	if !h.JSONOnly {
		return false
	}
	var a, b any
	return json.Unmarshal(got, &a) == nil && json.Unmarshal(want, &b) == nil && reflect.DeepEqual(a, b)
}
