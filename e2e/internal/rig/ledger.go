package rig

import (
	"encoding/json"
	"fmt"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
)

// Event is one row of the table that the tests write, and the ledger's unit.
// Seq ascends within K in the order of commits.
type Event struct {
	ID   int64  `json:"id"`
	K    string `json:"k"`
	Seq  int64  `json:"seq"`
	Note string `json:"note"`
}

// Ledger is what became of the events that were written.
type Ledger struct {
	Written    int    `json:"written"`
	Lost       int    `json:"lost"`
	Duplicated int    `json:"duplicated"`
	Reordered  int    `json:"reordered"` // first arrivals that came after a later one of their key
	Wrong      int    `json:"wrong"`     // arrived with other content, another key, or never written
	Example    string `json:"example,omitempty"`
}

func (l Ledger) String() string {
	s := fmt.Sprintf("%d written, %d lost, %d duplicated, %d reordered, %d wrong", l.Written, l.Lost, l.Duplicated, l.Reordered, l.Wrong)
	if l.Example != "" {
		s += " (" + l.Example + ")"
	}
	return s
}

// Err returns nil when nothing is lost, reordered or wrong, and nothing
// duplicated where exact.
func (l Ledger) Err(exact bool) error {
	if l.Lost > 0 || l.Reordered > 0 || l.Wrong > 0 || exact && l.Duplicated > 0 {
		return fmt.Errorf("%s", l)
	}
	return nil
}

func (l *Ledger) report(format string, args ...any) {
	if l.Example == "" {
		l.Example = fmt.Sprintf(format, args...)
	}
}

// Compare holds what has arrived against what was written.
func Compare(written []Event, arrived []ends.Record) Ledger {
	l := Ledger{Written: len(written)}
	want := make(map[int64]Event, len(written))
	for _, e := range written {
		want[e.ID] = e
	}
	times := make(map[int64]int, len(written))
	last := make(map[string]Event)
	ids := make(map[string]int64, len(written))
	for _, r := range arrived {
		got, err := Decode(r.Body)
		e, ok := want[got.ID]
		if err != nil || !ok || e != got {
			l.Wrong++
			l.report("message %s holds %.100s, %v", r.ID, r.Body, err)
			continue
		}
		if r.Key != "" && r.Key != e.K {
			l.Wrong++
			l.report("message %s of key %q has the key %q", r.ID, e.K, r.Key)
		}
		if other, ok := ids[r.ID]; ok && other != e.ID || r.ID == "" {
			l.Wrong++
			l.report("id %q stands for events %d and %d", r.ID, other, e.ID)
		}
		ids[r.ID] = e.ID
		if times[e.ID]++; times[e.ID] > 1 {
			l.Duplicated++
			l.report("event %d arrived %d times, now as %s", e.ID, times[e.ID], r.ID)
			continue
		}
		if prev, ok := last[e.K]; ok && prev.Seq > e.Seq {
			l.Reordered++
			l.report("event %d of key %s arrived after event %d", e.ID, e.K, prev.ID)
		} else {
			last[e.K] = e
		}
	}
	for _, e := range written {
		if times[e.ID] == 0 {
			l.Lost++
			l.report("event %d of key %s never arrived", e.ID, e.K)
		}
	}
	return l
}

// Decode reads the event out of a row or out of the envelope around one.
func Decode(body []byte) (e Event, err error) {
	var envelope struct {
		Payload json.RawMessage `json:"payload"`
		Event
	}
	if err := json.Unmarshal(body, &envelope); err != nil {
		return e, err
	}
	if envelope.Payload == nil {
		return envelope.Event, nil
	}
	return e, json.Unmarshal(envelope.Payload, &e)
}
