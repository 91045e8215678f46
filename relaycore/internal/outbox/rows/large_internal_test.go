package rows

import (
	"runtime"
	"strings"
	"testing"
	"time"
	"weak"
)

// TestLargePayloadIsNotKept: once the messages of a large row are gone, so is its payload.
func TestLargePayloadIsNotKept(t *testing.T) {
	t.Parallel()
	text := `"` + strings.Repeat("x", 1<<20) + `"`
	for _, payload := range []string{`[{"a":` + text + `}]`, `{"v":1,"inserted":[{"a":` + text + `}],"updated":[{"old":null,"new":{"a":1}}],"deleted":[]}`} {
		b := testBuilder()
		b.layout.size = 5
		b.Discard()
		whole := []byte(payload)
		kept := weak.Make(&whole[0])
		b.AddLarge(&Large{ID: 7, values: append(testRow("7", ""), nil)}, whole)
		if msgs, _ := b.Finish(); len(msgs) == 0 || msgs[0].Err != nil {
			t.Fatalf("messages %v of %.20s", msgs, payload)
		}
		whole = nil
		for deadline := time.Now().Add(10 * time.Second); kept.Value() != nil; runtime.GC() {
			if time.Now().After(deadline) {
				t.Fatalf("the payload %.20s… is kept by the builder", payload)
			}
		}
		runtime.KeepAlive(b)
	}
}
