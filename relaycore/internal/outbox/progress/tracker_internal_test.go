package progress

import (
	"encoding/json"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// position returns a position of the fence by its stored form.
func position(t *testing.T, state string) scan.Position {
	t.Helper()
	var s scan.State
	if err := json.Unmarshal([]byte(state), &s); err != nil {
		t.Fatal(err)
	}
	p, err := s.Position("fence")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCheckpointNeverPassesWhatIsNotSettled(t *testing.T) {
	t.Parallel()
	at := func(state string) scan.Position {
		t.Helper()
		return position(t, state)
	}
	s := New(Start{Position: at(`{"last":0}`)}, NewNotifier(), nil)
	slots := []rows.Slot{{ID: 1, End: true}, {ID: 2}, {ID: 2, Index: 1, End: true}, {ID: 3, Index: -1, End: true, Settled: true}, {ID: 4, End: true}}
	s.Add(slots, scan.Read{Inside: at(`{"last":4,"open":{"at":0,"from":0}}`), From: table.Beginning, After: at(`{"last":4}`), Secure: table.Beginning}, true)
	msg := func(i int) relay.Message { return relay.Message{Token: &slots[i]} }
	steps := []struct {
		batch []relay.Message
		want  string
	}{
		{[]relay.Message{msg(4)}, `"last":0,"done":[[4,0,1]],"safe":0}`},
		{[]relay.Message{msg(0), msg(1)}, `"last":4,"open":{"at":1,"from":0},"part":[2,1],"done":[[4,0,1]],"safe":0}`},
		{[]relay.Message{msg(1)}, `"last":4,"open":{"at":1,"from":0},"part":[2,1],"done":[[4,0,1]],"safe":0}`}, // twice is once
		{[]relay.Message{msg(2)}, `"last":4,"safe":4}`},
	}
	for i, step := range steps {
		got := string(s.Settle(step.batch).State)
		if len(got) < len(step.want) || got[len(got)-len(step.want):] != step.want {
			t.Fatalf("step %d: %s, want … %s", i, got, step.want)
		}
	}
}
