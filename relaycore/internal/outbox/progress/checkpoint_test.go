package progress_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/progress"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Checkpoints as earlier versions of the relay have written them. They must be read for
// ever, and a tracker that starts at one writes the same bytes.
var written = map[string]struct {
	text     string
	lastID   int64
	complete int64
	settled  rows.Settled
}{
	"windows, closed": {
		text:   `{"v":1,"mode":"window","of":{"system":"7391","timeline":"00000001","db":5,"table":16390,"file":16390,"sequence":16388},"lo":"740:745:741,743","safe":12,"audit":[0,12,0,12]}`,
		lastID: 12, complete: table.Beginning, settled: rows.Settled{},
	},
	"windows, not begun": {
		text:   `{"v":1,"mode":"window","of":{"db":5,"table":16390},"lo":"3:3:","at":41,"safe":41,"audit":[41,0]}`,
		lastID: 41, complete: table.Beginning, settled: rows.Settled{},
	},
	"windows, open in the middle of a row": {
		text: `{"v":1,"mode":"window","of":{"timeline":"00000002","db":5,"table":16390,"file":16395},"lo":"740:745:","hi":"750:760:755","at":17,` +
			`"part":[18,2],"done":[[18,4,5],[20,0,1]],"safe":9,"audit":[0,17,0,15],"expired":3}`,
		lastID: 9, complete: table.Beginning, settled: rows.Settled{18: {{First: 0, End: 2}, {First: 4, End: 5}}, 20: {{First: 0, End: 1}}},
	},
	"fence": {
		text:   `{"v":1,"mode":"fence","of":{"system":"7391","db":5,"table":16390,"sequence":16388},"last":100,"safe":100,"audit":[0,100,0,100]}`,
		lastID: 100, complete: 100, settled: rows.Settled{},
	},
	"fence, nothing read": {
		text:   `{"v":1,"mode":"fence","of":{"db":5,"table":16390},"last":-9223372036854775808,"safe":-9223372036854775808}`,
		lastID: 0, complete: table.Beginning, settled: rows.Settled{},
	},
	"fence, with holes and idle transactions": {
		text: `{"v":1,"mode":"fence","of":{"db":5,"table":16390},"last":100,"from":5,"holes":[0,5,1,1,38,21],` +
			`"idle":[["3/4","12 2026-01-02 03:04:05+00","7"],["-1/746","","9"]],"safe":4,"audit":[0,100,0,73]}`,
		lastID: 4, complete: 4, settled: rows.Settled{},
	},
	"fence, with an open read": {
		text: `{"v":1,"mode":"fence","of":{"db":5,"table":16390},"last":100,"from":50,"holes":[0,21],"open":{"at":30,"from":40,"fill":[31,39]},` +
			`"part":[31,1],"done":[[39,0,2]],"safe":30}`,
		lastID: 30, complete: 30, settled: rows.Settled{31: {{First: 0, End: 1}}, 39: {{First: 0, End: 2}}},
	},
}

func TestOldCheckpoints(t *testing.T) {
	t.Parallel()
	for name, tc := range written {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cp, err := progress.Parse(relay.Checkpoint{State: []byte(tc.text)})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.settled, cp.Settled()); diff != "" {
				t.Errorf("settled messages (-want +got):\n%s", diff)
			}
			position, err := cp.Position()
			if err != nil {
				t.Fatal(err)
			}
			if got := position.Complete(); got != tc.complete {
				t.Errorf("Complete = %d, want %d", got, tc.complete)
			}
			start := progress.Start{Origin: cp.Of, Position: position, Safe: cp.Safe, Counted: cp.Audit != nil, Resumed: cp}
			tracker := progress.New(start, progress.NewNotifier(), nil)
			if got := tracker.Settle(nil); string(got.State) != tc.text || got.LastID != tc.lastID {
				t.Errorf("written again, last id %d, want %d:\n%s\nwant\n%s", got.LastID, tc.lastID, got.State, tc.text)
			}
		})
	}
}

func TestCheckpointsOfOthers(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "null"} {
		if cp, err := progress.Parse(relay.Checkpoint{State: []byte(text)}); cp != nil || err != nil {
			t.Errorf("Parse(%q) = %v, %v, want none", text, cp, err)
		}
	}
	for name, text := range map[string]string{
		"a newer version":     `{"v":2,"mode":"fence"}`,
		"an unknown strategy": `{"v":1,"mode":"decoding"}`,
		"not JSON":            `{`,
	} {
		if _, err := progress.Parse(relay.Checkpoint{State: []byte(text)}); !relay.IsFatal(err) {
			t.Errorf("%s: %v, want a fatal error", name, err)
		}
	}
	cp, err := progress.Parse(relay.Checkpoint{State: []byte(`{"v":1,"mode":"window","lo":"3"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cp.Position(); !relay.IsFatal(err) {
		t.Errorf("a broken snapshot: %v, want a fatal error", err)
	}
}
