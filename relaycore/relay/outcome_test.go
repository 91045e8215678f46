package relay_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// keyed returns a batch with one message for each key.
func keyed(keys ...string) []relay.Message {
	batch := make([]relay.Message, len(keys))
	for i, key := range keys {
		batch[i] = relay.Message{ID: fmt.Sprint(i), Key: key}
	}
	return batch
}

type errSlice []string // an error without equality

func (e errSlice) Error() string { return "slice" }

func TestOutcome(t *testing.T) {
	t.Parallel()
	lost, full, bad := errors.New("connection lost"), errors.New("queue full"), relay.Permanent(errors.New("too large"))
	for name, tc := range map[string]struct {
		keys   []string
		record func(o *relay.Outcome)
		want   map[int]string // nil: no error
		whole  error          // the error itself, in place of a BatchError
	}{
		"all confirmed": {
			keys:   []string{"a", "b", ""},
			record: func(o *relay.Outcome) { o.Confirm(2); o.ConfirmRest() },
		},
		"one failed": {
			keys:   []string{"a", "b"},
			record: func(o *relay.Outcome) { o.Confirm(0); o.Fail(1, full) },
			want:   map[int]string{1: "queue full"},
		},
		"held back before it is sent": {
			keys: []string{"a", "a", "b", ""},
			record: func(o *relay.Outcome) {
				o.Fail(0, full)
				for i := 1; i < 4; i++ {
					if !o.Held(i) {
						o.Confirm(i)
					}
				}
			},
			want: map[int]string{0: "queue full", 1: relay.ErrHeldBack.Error()},
		},
		"sent before the one that failed": {
			keys: []string{"a", "a", "a"},
			record: func(o *relay.Outcome) {
				o.Fail(1, full)
				for _, i := range []int{0, 2} {
					if !o.Held(i) {
						o.Confirm(i)
					}
				}
			},
			want: map[int]string{1: "queue full", 2: relay.ErrHeldBack.Error()},
		},
		"confirmed behind a failed one": {
			keys:   []string{"a", "a", "b"},
			record: func(o *relay.Outcome) { o.Confirm(1); o.Fail(0, full); o.ConfirmRest() },
			want:   map[int]string{0: "queue full", 1: relay.ErrHeldBack.Error()},
		},
		"a failed message stays failed": {
			keys:   []string{"a", "b"},
			record: func(o *relay.Outcome) { o.Fail(0, full); o.Confirm(0); o.Fail(0, lost); o.ConfirmRest() },
			want:   map[int]string{0: "connection lost"},
		},
		"the rest fails":    {keys: []string{"a", "b"}, record: func(o *relay.Outcome) { o.Confirm(0); o.FailRest(lost) }, want: map[int]string{1: "connection lost"}},
		"one error for all": {keys: []string{"a", "b"}, record: func(o *relay.Outcome) { o.FailRest(lost) }, whole: lost},
		"one error for all, and what it held back": {
			keys:   []string{"a", "a"},
			record: func(o *relay.Outcome) { o.Fail(0, lost); o.Held(1) },
			whole:  lost,
		},
		"two errors":                 {keys: []string{"a", "b"}, record: func(o *relay.Outcome) { o.Fail(0, full); o.FailRest(lost) }, want: map[int]string{0: "queue full", 1: "connection lost"}},
		"a permanent error for all":  {keys: []string{"a"}, record: func(o *relay.Outcome) { o.FailRest(bad) }, want: map[int]string{0: "too large"}},
		"errors without equality":    {keys: []string{"a", "b"}, record: func(o *relay.Outcome) { o.FailRest(errSlice{}) }, want: map[int]string{0: "slice", 1: "slice"}},
		"a message without outcome":  {keys: []string{"a", "b"}, record: func(o *relay.Outcome) { o.Confirm(0) }, want: map[int]string{1: "the sink reported no outcome"}},
		"keys of the batch before":   {keys: []string{"a"}, record: func(o *relay.Outcome) { o.Fail(0, full); o.Reset(keyed("a")); o.Held(0); o.ConfirmRest() }},
		"messages of one empty key":  {keys: []string{"", ""}, record: func(o *relay.Outcome) { o.Fail(0, full); o.Held(1); o.ConfirmRest() }, want: map[int]string{0: "queue full"}},
		"outcomes of the last batch": {keys: []string{"a"}, record: func(o *relay.Outcome) { o.Confirm(0); o.Reset(keyed("a", "b")); o.Confirm(0) }, want: map[int]string{1: "the sink reported no outcome"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := relay.NewOutcome(keyed(tc.keys...))
			tc.record(o)
			err := o.Err()
			if tc.want == nil {
				if err != tc.whole { //nolint:errorlint // the error itself
					t.Errorf("Err() = %v, want %v", err, tc.whole)
				}
				return
			}
			failed, ok := err.(*relay.BatchError) //nolint:errorlint // the error itself
			if !ok {
				t.Fatalf("Err() = %T %v, want a BatchError", err, err)
			}
			got := make(map[int]string)
			for i, err := range failed.Failed {
				got[i] = err.Error()
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("Err() differs (-want +got):\n%s", diff)
			}
		})
	}
}

// A later message of a failed key that was confirmed is at the destination, and the
// engine has to know.
// TestOutcomeBegin: nothing is sent for a context that has ended, or after Close.
func TestOutcomeBegin(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var o relay.Outcome
	batch := []relay.Message{{ID: "1"}}
	if err := o.Begin(ended, batch); !errors.Is(err, context.Canceled) {
		t.Errorf("Begin = %v, want %v", err, context.Canceled)
	}
	if err := o.Begin(t.Context(), batch); err != nil || o.Confirmed(0) {
		t.Errorf("Begin = %v, want an open message", err)
	}
	o.Close()
	if err := o.Begin(t.Context(), batch); !errors.Is(err, relay.ErrClosed) {
		t.Errorf("Begin = %v, want %v", err, relay.ErrClosed)
	}
}

func TestOutcomeOfAConfirmedMessageBehindAFailedOne(t *testing.T) {
	t.Parallel()
	o := relay.NewOutcome(keyed("a", "a"))
	o.Confirm(1)
	o.Fail(0, errors.New("refused"))
	if err := o.Err(); !relay.IsUnknown(err) {
		t.Errorf("Err() = %v, want an error of unknown outcome", err)
	}
}

// The error that Err returned belongs to the engine; the next batch leaves it alone.
func TestOutcomeResetKeepsTheErrorBefore(t *testing.T) {
	t.Parallel()
	o := relay.NewOutcome(keyed("a", "b"))
	o.Confirm(0)
	o.FailRest(errors.New("refused"))
	err := o.Err()
	o.Reset(keyed("a", "b"))
	o.FailRest(errors.New("another"))
	if got := err.Error(); got != "refused" {
		t.Errorf("Err() = %q after Reset, want %q", got, "refused")
	}
}

func TestOutcomeIsSharedByWorkers(t *testing.T) {
	t.Parallel()
	batch := make([]relay.Message, 1000)
	for i := range batch {
		batch[i].Key = fmt.Sprint(i % 100)
	}
	o := relay.NewOutcome(batch)
	var workers sync.WaitGroup
	for w := range 10 {
		workers.Go(func() {
			for i := w; i < len(batch); i += 10 {
				switch {
				case o.Held(i):
				case i%100 == 7:
					o.Fail(i, errors.New("refused"))
				default:
					o.Confirm(i)
				}
			}
		})
	}
	workers.Wait()
	if got := len(o.Err().(*relay.BatchError).Failed); got != 10 { //nolint:errorlint // as it is documented
		t.Errorf("%d messages failed, want the 10 of one key", got)
	}
}

func TestConfirmedBatchAllocatesNothing(t *testing.T) {
	batch := keyed("a", "b", "a", "")
	o := relay.NewOutcome(batch)
	var lanes relay.Lanes
	var acks relay.Acks[int64]
	lanes.Split(batch)
	allocs := testing.AllocsPerRun(1000, func() {
		o.Reset(batch)
		lanes.Split(batch)
		for i := range batch {
			if !o.Held(i) {
				o.Confirm(i)
			}
			acks.Done(acks.Add(int64(i)))
		}
		if err := o.Err(); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("a confirmed batch makes %v allocations, want none", allocs)
	}
}

func ExampleOutcome() {
	batch := []relay.Message{{ID: "1", Key: "a"}, {ID: "2", Key: "a"}, {ID: "3", Key: "b"}}
	send := func(m *relay.Message) error {
		if m.ID == "1" {
			return errors.New("queue full")
		}
		return nil
	}

	outcome := relay.NewOutcome(batch)
	for i := range batch {
		if outcome.Held(i) {
			continue // an earlier message of its key has failed
		}
		if err := send(&batch[i]); err != nil {
			outcome.Fail(i, err)
			continue
		}
		outcome.Confirm(i)
	}
	err := outcome.Err()
	fmt.Println(err)
	// Output: 2 messages not confirmed, the first: queue full
}

func ExampleUnknown() {
	publish := func() error {
		err := errors.New("connection lost before the answer")
		return relay.Unknown(err) // the engine reads the destination back
	}
	fmt.Println(relay.IsUnknown(publish()))
	// Output: true
}
