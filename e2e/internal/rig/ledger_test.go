package rig

import (
	"fmt"
	"testing"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
)

// TestCompare shows that the ledger bites.
func TestCompare(t *testing.T) {
	t.Parallel()
	a1, a2, b1 := Event{ID: 1, K: "a", Seq: 1}, Event{ID: 2, K: "a", Seq: 2}, Event{ID: 3, K: "b", Seq: 1, Note: "ü"}
	record := func(e Event) ends.Record {
		return ends.Record{
			ID: fmt.Sprint("outbox:", e.ID, ":0"), Key: e.K,
			Body: fmt.Appendf(nil, `{"payload":{"id":%d,"k":%q,"seq":%d,"note":%q}}`, e.ID, e.K, e.Seq, e.Note),
		}
	}
	other := record(b1)
	other.Body = record(Event{ID: 3, K: "b", Seq: 1, Note: "u"}).Body
	keyless := record(b1)
	keyless.Key = "c"
	for name, tc := range map[string]struct {
		arrived []ends.Record
		want    Ledger
	}{
		"all there":      {[]ends.Record{record(b1), record(a1), record(a2)}, Ledger{}},
		"lost":           {[]ends.Record{record(a1), record(a2)}, Ledger{Lost: 1}},
		"twice":          {[]ends.Record{record(a1), record(a2), record(b1), record(a1)}, Ledger{Duplicated: 1}},
		"other order":    {[]ends.Record{record(a2), record(a1), record(b1)}, Ledger{Reordered: 1}},
		"other content":  {[]ends.Record{record(a1), record(a2), other}, Ledger{Wrong: 1, Lost: 1}},
		"other key":      {[]ends.Record{record(a1), record(a2), keyless}, Ledger{Wrong: 1}},
		"never written":  {[]ends.Record{record(a1), record(a2), record(b1), record(Event{ID: 9})}, Ledger{Wrong: 1}},
		"not even JSON":  {[]ends.Record{record(a1), record(a2), record(b1), {ID: "x", Body: []byte("x")}}, Ledger{Wrong: 1}},
		"one id for two": {[]ends.Record{record(a1), record(a2), {ID: record(a1).ID, Body: record(b1).Body}}, Ledger{Wrong: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := Compare([]Event{a1, a2, b1}, tc.arrived)
			got.Example, tc.want.Written = "", 3
			if got != tc.want {
				t.Errorf("Compare() = %v, want %v", got, tc.want)
			}
		})
	}
}
