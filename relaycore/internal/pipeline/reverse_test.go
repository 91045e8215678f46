package pipeline

import (
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// TestMaxMessageBytes: a message that is larger than max_message_bytes, or than the memory,
// becomes a dead letter with its body, and parks its key. Once more is allowed, a retry
// delivers it, and then what waits behind it.
func TestMaxMessageBytes(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		key    string // of the configuration, and its value
		budget *budget.Budget
		why    string
	}{
		"key":    {key: `, "max_message_bytes": 10000`, why: "the message has 10001 bytes, and max_message_bytes allows 10000: set a larger max_message_bytes, then retry"},
		"memory": {budget: budget.New(1<<20, 40_000), why: "the message has 10001 bytes, and the relay's memory allows 10000: give it more memory, then retry"},
		"both":   {key: `, "max_message_bytes": "1MiB"`, budget: budget.New(1<<20, 40_000), why: "the relay's memory allows 10000"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st, _ := newStage(t)
			configure := func(more string) {
				st.exec(t, `SELECT pgtrickle.set_relay_inbox('in', '{"inbox_table": "arrivals", "source_type": "memory",
					"aggregate_id_from": "body:k"`+more+`}')`)
			}
			configure(tc.key)
			var batch []relay.Message
			for i, length := range []int{10_000, 10_001, 100} {
				m := relaytest.Message(i, "")
				m.Body = []byte(`{"k":"a","text":"` + strings.Repeat("x", length-len(`{"k":"a","text":""}`)) + `"}`)
				batch = append(batch, m)
			}
			if err := st.queue.Sink().Publish(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			const dead = `SELECT coalesce(string_agg(format('%s %s %s', class, octet_length(body), key), ', ' ORDER BY id), '')
				FROM pgtrickle.relay_dead_letters`
			st.runUntil(t, st.load(t, "in"), tc.budget, dead, "too_large 10001 a, parked 100 a")
			if got := st.value(t, `SELECT error FROM pgtrickle.relay_dead_letters WHERE class = 'too_large'`); !strings.Contains(got, tc.why) {
				t.Errorf("error %q, want %q", got, tc.why)
			}
			if got := st.value(t, `SELECT count(*) FROM pgtrickle.arrivals`); got != "1" {
				t.Errorf("%s messages are in the inbox, want 1", got)
			}

			st.exec(t, `SELECT pgtrickle.relay_dlq_retry('in')`)
			configure(`, "max_message_bytes": "1MiB"`)
			st.runUntil(t, st.load(t, "in"), budget.New(1<<20, 1<<20), dead, "")
			if got := st.value(t, `SELECT string_agg(length(payload ->> 'text')::text, ' ' ORDER BY event_id) FROM pgtrickle.arrivals`); got != "9981 9982 81" {
				t.Errorf("texts of %s bytes are in the inbox, want 9981, 9982 and 81", got)
			}
		})
	}
}
