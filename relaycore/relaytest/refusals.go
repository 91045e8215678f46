package relaytest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Refusals goes through the table of a backend. refuse returns the backend's error for an
// answer of the far end, made as the client makes it. ofRow is true if a row's field names
// the destination. A row that an earlier one hides, a class that does not fit the row and
// a kind without a row are errors.
func Refusals(t *testing.T, table relay.Refusals, refuse func(answer string, ofRow bool) error) {
	t.Helper()
	for _, kind := range relay.RefusalKinds() {
		if !slices.ContainsFunc(table, func(r relay.Refusal) bool { return r.Kind == kind }) {
			t.Errorf("no row for %q: add one, or the reason why it cannot occur", kind)
		}
	}
	for _, r := range table {
		if !slices.Contains(relay.RefusalKinds(), r.Kind) || (r.Blame == "") != (r.Answer == "") || r.Blame == "" && r.Note == "" {
			t.Errorf("row %+v lacks a kind, or one of answer and blame, or a note", r)
		}
		if r.Blame == "" {
			continue
		}
		for _, form := range r.Answers() {
			answer := strings.ReplaceAll(form, "*", "")
			if got := table.Find(answer); got != r {
				t.Errorf("%q of row %+v is hidden behind %+v", form, r, got)
			}
			for _, ofRow := range []bool{false, true} {
				err := refuse(answer, ofRow)
				permanent := r.Blame == relay.BlameMessage || r.Blame == relay.BlameDestination && ofRow
				fatal := r.Blame == relay.BlamePipeline || r.Blame == relay.BlameDestination && !ofRow
				if err == nil || relay.IsPermanent(err) != permanent || relay.IsFatal(err) != fatal {
					t.Errorf("%q (named by a row: %t) is %v, permanent %t, fatal %t; its row blames the %s",
						answer, ofRow, err, relay.IsPermanent(err), relay.IsFatal(err), r.Blame)
				}
			}
		}
	}
}

// Settle publishes batch as the engine does, without its waits, until every message is
// confirmed or refused for good. It returns the IDs of the latter: those that become dead
// letters. An error that stops the pipeline, or ten attempts, end the test.
func Settle(t testing.TB, sink relay.Sink, batch []relay.Message) (dead []string) {
	t.Helper()
	var err error
	for range 10 {
		if err = sink.Publish(t.Context(), batch); err == nil {
			return dead
		}
		partial, ok := errors.AsType[*relay.BatchError](err)
		switch {
		case relay.IsFatal(err):
			t.Fatalf("Publish = %v, which stops the pipeline", err)
		case !ok && relay.IsPermanent(err) && len(batch) == 1:
			return append(dead, batch[0].ID)
		case !ok && relay.IsPermanent(err):
			dead = append(dead, Settle(t, sink, batch[:1])...)
			batch = batch[1:]
			continue
		case !ok:
			continue
		}
		var rest []relay.Message
		for i := range batch {
			switch err, failed := partial.Failed[i]; {
			case failed && relay.IsFatal(err):
				t.Fatalf("Publish = %v, which stops the pipeline", err)
			case failed && relay.IsPermanent(err):
				dead = append(dead, batch[i].ID)
			case failed:
				rest = append(rest, batch[i])
			}
		}
		if batch = rest; len(batch) == 0 {
			return dead
		}
	}
	t.Fatalf("%d messages are not settled: %v", len(batch), err)
	return nil
}
