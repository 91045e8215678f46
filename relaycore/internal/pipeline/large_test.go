package pipeline

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/retention"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

func (st *stage) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := st.pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// value returns the first column of the first row, as text.
func (st *stage) value(t *testing.T, sql string) (text string) {
	t.Helper()
	if err := st.pool.QueryRow(t.Context(), sql).Scan(&text); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

// runUntil runs a pipeline until sql returns want.
func (st *stage) runUntil(t *testing.T, p catalog.Pipeline, limit *budget.Budget, sql, want string) {
	t.Helper()
	st.runner.Budget = limit
	job, _, stop := st.job(t, p)
	done := make(chan error, 1)
	go func() { done <- st.runner.Run(t.Context(), job) }()
	for deadline := time.Now().Add(30 * time.Second); st.value(t, sql) != want; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%s = %s, want %s", sql, st.value(t, sql), want)
			break
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
}

// newDocuments returns a stage with a pipeline of an outbox with four rows. 1 has 5 MB,
// and 2 another key. 3 and 4 have the key of 1, and 3 has the 5 MB as its old row.
func newDocuments(t *testing.T) (*stage, catalog.Pipeline) {
	t.Helper()
	st, _ := newStage(t)
	st.exec(t, `CREATE TABLE documents (id int PRIMARY KEY, body text);
		SELECT pgtrickle.enable_outbox('documents');
		SELECT pgtrickle.set_relay_outbox('big', '{"stream_table": "documents", "sink_type": "memory", "subject_template": "s"}');
		INSERT INTO documents SELECT 1, string_agg(md5(i::text), '') FROM generate_series(1, 156250) i`)
	st.exec(t, `INSERT INTO documents VALUES (2, 'small')`)
	st.exec(t, `UPDATE documents SET body = 'small' WHERE id = 1`)
	st.exec(t, `UPDATE documents SET body = 'smaller' WHERE id = 1`)
	return st, st.load(t, "big")
}

// load returns a pipeline as the catalog has it now.
func (st *stage) load(t *testing.T, name string) catalog.Pipeline {
	t.Helper()
	all, err := catalog.New(registryOf(t, st), relaycfg.Unrestricted()).Load(t.Context(), st.pool)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("no pipeline %s", name)
	return catalog.Pipeline{}
}

func (st *stage) arrived() (sizes []int) {
	for _, m := range st.queue.Messages() {
		sizes = append(sizes, len(m.Body)/1_000_000)
	}
	return sizes
}

const deadLetters = `SELECT string_agg(format('%s %s %s %s', outbox_id, class, by_reference, octet_length(body) < 1000), ', ' ORDER BY id)
	FROM pgtrickle.relay_dead_letters`

// TestTooLargeRow: a row that the memory does not allow becomes a dead letter that refers
// to it. Its key waits, retention keeps the row, and a retry with more memory delivers it.
func TestTooLargeRow(t *testing.T) {
	t.Parallel()
	st, big := newDocuments(t)
	st.exec(t, `UPDATE pgtrickle.outbox_documents SET created_at = now() - interval '1 year'`) // before the ids are made of it
	small, enough := budget.New(1<<20, 6_000_000), budget.New(1<<20, 60_000_000)
	// Retention goes by last_id, which follows a moment later.
	st.runUntil(t, big, small, `SELECT count(*) || ' up to ' || (SELECT max(last_id) FROM pgtrickle.relay_cursors)
		FROM pgtrickle.relay_dead_letters`, "3 up to 4")
	if got, want := st.value(t, deadLetters), "1 too_large t t, 3 parked t t, 4 parked f t"; got != want {
		t.Errorf("dead letters %s, want %s", got, want)
	}
	if why := st.value(t, `SELECT min(error) FROM pgtrickle.relay_dead_letters WHERE class = 'too_large'`); !strings.Contains(why, "2000000") {
		t.Errorf("error %q, want one with the limit", why)
	}

	if _, err := retention.Sweep(t.Context(), st.pool, retention.Options{}); err != nil {
		t.Fatal(err)
	}
	if got := st.value(t, `SELECT string_agg(id::text, ' ') FROM pgtrickle.outbox_documents`); got != "1 3" {
		t.Errorf("rows %s are left, want 1 and 3, which dead letters refer to", got)
	}

	st.exec(t, `SELECT pgtrickle.relay_dlq_retry('big')`)
	st.runUntil(t, big, small, `SELECT count(*) FILTER (WHERE status = 'dead') FROM pgtrickle.relay_dead_letters`, "1") // still too large
	st.exec(t, `SELECT pgtrickle.relay_dlq_retry('big')`)
	st.runUntil(t, big, enough, `SELECT count(*) FROM pgtrickle.relay_dead_letters`, "0")
	if got := st.arrived(); !slices.Equal(got, []int{0, 5, 0, 0}) {
		t.Errorf("messages of %v MB arrived, want 0, 5, 0 and 0", got)
	}
}

// TestRetryWithoutTheRow: dead letters by reference show whether their row is still there,
// and are not retried without it.
func TestRetryWithoutTheRow(t *testing.T) {
	t.Parallel()
	st, big := newDocuments(t)
	small, enough := budget.New(1<<20, 6_000_000), budget.New(1<<20, 60_000_000)
	st.runUntil(t, big, small, `SELECT count(*) || ' up to ' || (SELECT max(last_id) FROM pgtrickle.relay_cursors)
		FROM pgtrickle.relay_dead_letters`, "3 up to 4")
	const originals = `SELECT string_agg(outbox_id || ' ' || coalesce(original, '-'), ', ' ORDER BY id)
		FROM pgtrickle.relay_dead_letters LEFT JOIN pgtrickle.relay_dlq_original(ARRAY(SELECT id FROM pgtrickle.relay_dead_letters)) USING (id)`
	if got := st.value(t, originals); got != "1 kept, 3 kept, 4 -" {
		t.Errorf("original rows %s, want 1 and 3 to be kept", got)
	}

	st.exec(t, `DELETE FROM pgtrickle.outbox_documents WHERE id = 1`)
	if got := st.value(t, originals); got != "1 gone, 3 kept, 4 -" {
		t.Errorf("original rows %s, want 1 to be gone", got)
	}
	operator := store.New(st.pool, "g")
	listed, err := operator.ListDeadLetters(t.Context(), store.DeadLetterFilter{Pipeline: "big"})
	if err != nil || len(listed) != 3 || listed[0].Original != "gone" || listed[1].Original != "kept" || listed[2].Original != "" {
		t.Errorf("ListDeadLetters = %+v, %v", listed, err)
	}
	_, err = operator.RetryDeadLetters(t.Context(), store.DeadLetterFilter{Pipeline: "big"})
	if err == nil || !strings.Contains(err.Error(), `refer to outbox rows that are gone, the first is 1; they cannot be delivered: drop them with "dlq discard big --id 1"`) {
		t.Errorf("RetryDeadLetters = %v, want it refused with the cure", err)
	}
	if got := st.value(t, `SELECT string_agg(status, ' ' ORDER BY id) FROM pgtrickle.relay_dead_letters`); got != "dead parked parked" {
		t.Errorf("states %s after a refused retry", got)
	}

	st.exec(t, `SELECT pgtrickle.relay_dlq_discard('big', p_ids => ARRAY[1])`)
	st.runUntil(t, big, enough, `SELECT count(*) FROM pgtrickle.relay_dead_letters`, "0")
	if got := st.arrived(); !slices.Equal(got, []int{0, 0, 0}) {
		t.Errorf("messages of %v MB arrived, want those of 2, 3 and 4", got)
	}
}

// TestRetriedLargeRow: a large row that was refused is read again, and delivered once.
func TestRetriedLargeRow(t *testing.T) {
	t.Parallel()
	st, big := newDocuments(t)
	st.refuse = func(m *relay.Message) bool { return len(m.Body) > 1_000_000 }
	limit := budget.New(1<<20, 60_000_000)
	st.runUntil(t, big, limit, `SELECT count(*) FROM pgtrickle.relay_dead_letters`, "3")
	st.refuse = nil
	st.exec(t, `SELECT pgtrickle.relay_dlq_retry('big')`)
	st.runUntil(t, big, limit, `SELECT count(*) FROM pgtrickle.relay_dead_letters`, "0")
	if got := st.arrived(); !slices.Equal(got, []int{0, 5, 0, 0}) {
		t.Errorf("messages of %v MB arrived, want 0, 5, 0 and 0", got)
	}
}

// TestRefusedLargeRow: a large row that the far end refuses is not stored a second time.
// If its row is gone, a retry reports that.
func TestRefusedLargeRow(t *testing.T) {
	t.Parallel()
	st, big := newDocuments(t)
	st.refuse = func(m *relay.Message) bool { return len(m.Body) > 1_000_000 }
	limit := budget.New(1<<20, 60_000_000)
	st.runUntil(t, big, limit, `SELECT count(*) FROM pgtrickle.relay_dead_letters`, "3")
	if got, want := st.value(t, deadLetters), "1 refused t t, 3 parked t t, 4 parked f t"; got != want {
		t.Errorf("dead letters %s, want %s", got, want)
	}
	st.refuse = nil
	st.exec(t, `SELECT pgtrickle.relay_dlq_retry('big')`)
	st.exec(t, `DELETE FROM pgtrickle.outbox_documents WHERE id = 1`)
	st.runUntil(t, big, limit, `SELECT count(*) FROM pgtrickle.relay_dead_letters WHERE error LIKE '%is gone%'`, "1")
}

// TestReadLargeRows: a preview shows a large row, and one that is too large for the memory
// as such. It ends at neither.
func TestReadLargeRows(t *testing.T) {
	t.Parallel()
	st, big := newDocuments(t)
	for limit, want := range map[*budget.Budget]string{
		budget.New(1<<20, 60_000_000): "1: 5 MB , 2: 0 MB , 3: 5 MB , 4: 0 MB ",
		budget.New(1<<20, 6_000_000):  "1: 0 MB too_large, 2: 0 MB , 3: 0 MB too_large, 4: 0 MB ",
	} {
		st.runner.Budget = limit
		r, err := st.runner.Read(t.Context(), big, 1, discard)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for {
			batch, err := r.Next(t.Context(), 10)
			if err != nil {
				t.Fatal(err)
			}
			if len(batch) == 0 {
				break
			}
			for _, m := range batch {
				class := ""
				if e, ok := errors.AsType[*budget.TooLargeError](m.Err); ok {
					class = e.Class()
				}
				got = append(got, fmt.Sprintf("%d: %d MB %s", m.OutboxID, (len(m.Row)+len(m.Before))/1_000_000, class))
			}
		}
		if got := strings.Join(got, ", "); got != want {
			t.Errorf("rows %q, want %q", got, want)
		}
		if err := r.Source.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSinkMayReadBack: after a crash a sink reads back what it sent. Its answer may be as
// large as the largest row in its envelope, of the backends with the fewest copies.
func TestSinkMayReadBack(t *testing.T) {
	e := &ends{Runner: &Runner{Budget: budget.New(64<<20, 128<<20)}, resolved: catalog.Resolved{Access: new(relaycfg.Access)}}
	const fewest = 2
	if most, row := e.env().MaxAnswer, e.Budget.Largest(fewest); most < 2*row {
		t.Errorf("a sink may read %d bytes back, and send a row of %d", most, row)
	}
}
