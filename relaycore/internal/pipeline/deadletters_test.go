package pipeline

import (
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const outConfig = `{"stream_table": "public.orders", "sink_type": "memory", "subject_template": "s"}`

// TestMaxDeadLetters: a pipeline that has as many dead letters as it may have fails, now
// and when it starts again. It goes on once they are retried, or fewer.
func TestMaxDeadLetters(t *testing.T) {
	t.Parallel()
	st, _ := newStage(t)
	st.exec(t, `SELECT pgtrickle.set_relay_outbox('out', '`+outConfig+`'::jsonb || '{"max_dead_letters": 3, "batch_size": 1}')`)
	out := st.load(t, "out")
	st.refuse = func(*relay.Message) bool { return true }
	fails := func(when string) {
		t.Helper()
		job, _, stop := st.job(t, out)
		defer stop()
		err := st.runner.Run(t.Context(), job)
		if err == nil || !relay.IsFatal(err) || !strings.Contains(err.Error(), "3 dead letters and parked messages are stored") {
			t.Errorf("%s: Run = %v", when, err)
		}
		if status := st.value(t, `SELECT status FROM pgtrickle.relay_cursors WHERE pipeline = 'out'`); status != "failed" {
			t.Errorf("%s: the status is %s", when, status)
		}
	}
	fails("while it runs")
	if n := st.value(t, `SELECT count(*) FROM pgtrickle.relay_dead_letters`); n < "3" || n > "5" {
		t.Errorf("%s dead letters are stored", n)
	}
	st.refuse = nil
	fails("when it starts again")
	if len(st.arrived()) > 0 {
		t.Error("a pipeline at its limit delivers")
	}
	st.exec(t, `SELECT pgtrickle.relay_dlq_retry('out')`)
	st.runUntil(t, out, nil, `SELECT count(*) FROM pgtrickle.relay_dead_letters`, "0")
	if n := len(st.arrived()); n != 5 {
		t.Errorf("%d messages arrived, want 5", n)
	}
}

// TestDeadLetterRetention: a dead letter that is old enough is deleted and counted, and
// what is parked behind it is delivered.
func TestDeadLetterRetention(t *testing.T) {
	t.Parallel()
	st, _ := newStage(t)
	st.exec(t, `SELECT pgtrickle.set_relay_outbox('out', '`+outConfig+`'::jsonb || '{"dead_letter_retention": "1h"}')`)
	st.refuse = func(m *relay.Message) bool { return m.Key == "3" && m.Op == relay.OpInsert }
	st.exec(t, `ALTER TABLE public.orders ADD note text; SELECT pgtrickle.outbox_upgrade('public.orders'); UPDATE public.orders SET note = 'x' WHERE id = 3`)
	st.runUntil(t, st.load(t, "out"), nil, `SELECT coalesce(string_agg(status, ' ' ORDER BY id), '') FROM pgtrickle.relay_dead_letters`, "dead parked")

	st.exec(t, `UPDATE pgtrickle.relay_dead_letters SET created_at = now() - interval '61 minutes'`)
	st.runUntil(t, st.load(t, "out"), nil, `SELECT format('%s %s', (SELECT count(*) FROM pgtrickle.relay_dead_letters), expired)
		FROM pgtrickle.relay_cursors WHERE pipeline = 'out'`, "0 1")
	if n := len(st.arrived()); n != 5 {
		t.Errorf("%d messages arrived, want 4 inserts and an update", n)
	}
}
