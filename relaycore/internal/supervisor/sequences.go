package supervisor

import (
	"context"
	"slices"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// numbered is a source whose rows a sequence numbers.
type numbered interface {
	relay.Lagger
	// Numbering returns the sequence's oid and the id up to which all is settled. ok
	// is false if the sequence does not show whether there is something to read.
	Numbering() (sequence uint32, settled int64, ok bool)
}

// WatchedPoll is how often a source polls by itself if its sequence is watched. It
// finds rows whose ids did not come from the sequence.
const WatchedPoll = time.Minute

// quiet is what is known of a source that has nothing to read.
type quiet struct {
	since   time.Time // zero if there may be something to read
	settled int64     // the id up to which all was settled then
	checked time.Time // when its sequence was last read
}

const (
	minPause  = 5 * time.Millisecond // between two reads of the sequences
	maxPause  = 200 * time.Millisecond
	listEvery = time.Second // how often the list of sources is made again
	// longQuiet is how long an outbox must be quiet for its interval to double. Most
	// outboxes of a relay that has many are quiet for hours, and their writers notify.
	longQuiet = 10 * time.Second
)

// watchSequences reads the sequences of all outboxes with one query, in place of one
// poll of each. It wakes the sources whose sequence has moved. An id that was handed
// out is a row that is visible, will be, or was rolled back; the source finds out.
//
// A hundred idle pipelines cost what one does. It reads at round times of the clock,
// as leases are renewed at such. A wake-up of an idle process costs more than the work
// that is done in it.
func (s *Supervisor) watchSequences(ctx context.Context) {
	var list []watched
	var due []*watched
	var listed time.Time
	for pause := maxPause; ; {
		untilRound := pause - time.Duration(time.Now().UnixNano())%pause
		if backoff.Sleep(ctx, untilRound) != nil {
			return
		}
		now := time.Now()
		if now.Sub(listed) >= listEvery {
			list, pause = s.listWatched(list)
			listed = now
		}
		due = due[:0]
		for i := range list {
			if w := &list[i]; now.Sub(w.checked) >= w.every-pause/2 { // timers fire a little early or late
				w.checked = now
				due = append(due, w)
			}
		}
		if len(due) > 0 {
			s.checkSequences(ctx, due)
		}
	}
}

// watched is a source whose sequence is read. It has a copy of the state of a quiet
// source, which holds until the sequence moves. The copy lies in one place, because
// every other place is a cache miss in an idle process.
type watched struct {
	runner   *runner
	source   numbered
	every    time.Duration
	checked  time.Time
	quiet    bool
	readable bool // the sequence shows whether there is something to read
	sequence uint32
	settled  int64
}

// listWatched makes list into the sources to watch now, and returns the longest
// pause that suits them all.
func (s *Supervisor) listWatched(list []watched) ([]watched, time.Duration) {
	for i := range list {
		list[i].runner.noteChecked(list[i].checked)
	}
	clear(list) // release runners that have ended
	list = list[:0]
	pause := maxPause
	s.each(func(r *runner) {
		r.mu.Lock()
		defer r.mu.Unlock()
		source, ok := r.opened.Lag.(numbered)
		if !ok {
			return
		}
		every := r.opened.PollInterval
		if !r.quiet.since.IsZero() && time.Since(r.quiet.since) >= longQuiet {
			every *= 2
		}
		list = append(list, watched{runner: r, source: source, every: every, checked: r.quiet.checked})
		pause = min(pause, max(every, minPause))
	})
	return list, pause
}

// checkSequences reads the sequences of the sources and wakes those that have
// something to read.
func (s *Supervisor) checkSequences(ctx context.Context, due []*watched) {
	oids := make([]uint32, 0, len(due))
	for _, w := range due {
		if !w.quiet {
			w.sequence, w.settled, w.readable = w.source.Numbering()
		}
		if w.readable {
			oids = append(oids, w.sequence)
		}
	}
	slices.Sort(oids)
	oids = slices.Compact(oids) // pipelines may share an outbox
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	last, err := s.cfg.Sequences(ctx, oids)

	for _, w := range due {
		unmoved := func() bool {
			id, found := last[w.sequence]
			return err == nil && w.readable && found && (id == nil || *id == w.settled)
		}
		if w.quiet && unmoved() {
			continue
		}
		if w.quiet { // a notification may have woken the source, and it has read all
			w.sequence, w.settled, w.readable = w.source.Numbering()
		}
		w.quiet = unmoved()
		w.runner.noteQuiet(w)
	}
}

func (r *runner) noteChecked(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.quiet.checked = at
}

// noteQuiet records whether the source has nothing to read, and wakes it otherwise.
func (r *runner) noteQuiet(w *watched) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.opened.Lag != w.source: // it was closed
	case !w.quiet:
		r.quiet.since = time.Time{}
		notify(r.wake)
	case r.quiet.since.IsZero() || r.quiet.settled != w.settled:
		r.quiet.since, r.quiet.settled = time.Now(), w.settled
	}
}
