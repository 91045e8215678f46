package supervisor

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// numbered is a source whose rows a sequence numbers.
type numbered interface {
	relay.Lagger
	Numbering() (sequence uint32, settled int64, ok bool)
}

// quietPoll is how often a source polls by itself when its sequence is watched: for
// rows whose ids somebody chose.
const quietPoll = time.Minute

// pulse watches the sequences of all outboxes with one query, in place of one
// poll of each, and wakes the sources whose sequence has moved: an id that was
// handed out is a row that is there, or will be, or was rolled back, and the source
// finds out which. A hundred idle pipelines cost what one does. It looks at round
// times of the clock, as leases are renewed at such: a wake-up of an idle process
// costs more than what is done in it.
func (s *Supervisor) pulse(ctx context.Context) {
	var list []watch
	var due []*watch
	var listed time.Time
	for wait := mostPause; ; {
		timer := time.NewTimer(wait - time.Duration(time.Now().UnixNano())%wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		now := time.Now()
		if now.Sub(listed) >= listEvery {
			list, wait = s.watches(list)
			listed = now
		}
		due = due[:0]
		for i := range list {
			if w := &list[i]; now.Sub(w.asked) >= w.every-wait/2 { // timers are a little early or late
				w.asked = now
				due = append(due, w)
			}
		}
		if len(due) > 0 {
			s.look(ctx, due)
		}
	}
}

// Pauses between two looks, and how often it is asked anew what there is to look at.
const (
	leastPause = 5 * time.Millisecond
	mostPause  = 200 * time.Millisecond
	listEvery  = time.Second
)

// An outbox that has been quiet so long is looked at half as often as its pipeline
// asks for: most outboxes of a relay that has many are quiet for hours, and what
// writes into one most likely notifies.
const longQuiet = 10 * time.Second

// watch is a source whose sequence is looked at. What it holds of a quiet source is
// good until its sequence moves, and is in few places: in a process that is mostly
// idle every place is a cache miss.
type watch struct {
	runner   *runner
	source   numbered
	every    time.Duration
	asked    time.Time
	quiet    bool
	tells    bool
	sequence uint32
	settled  int64
}

// watches lists what there is to look at, and the longest pause that suits all. It
// makes the list that it is given into the new one.
func (s *Supervisor) watches(list []watch) ([]watch, time.Duration) {
	for i := range list {
		list[i].runner.asked = list[i].asked
	}
	clear(list) // a runner may have ended
	list = list[:0]
	pause := mostPause
	s.each(func(r *runner) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if source, ok := r.lag.(numbered); ok {
			every := r.poll
			if !r.quietSince.IsZero() && time.Since(r.quietSince) >= longQuiet {
				every *= 2
			}
			list = append(list, watch{runner: r, source: source, every: every, asked: r.asked})
			pause = min(pause, max(every, leastPause))
		}
	})
	return list, pause
}

// look asks for the sequences of the sources and wakes those that have to read.
func (s *Supervisor) look(ctx context.Context, due []*watch) {
	oids := make([]uint32, 0, len(due))
	for _, w := range due {
		if !w.quiet {
			w.sequence, w.settled, w.tells = w.source.Numbering()
		}
		if w.tells {
			oids = append(oids, w.sequence)
		}
	}
	slices.Sort(oids)
	oids = slices.Compact(oids) // pipelines may share an outbox
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	last, err := s.cfg.Sequences(ctx, oids)
	for _, w := range due {
		still := func() bool {
			id, seen := last[w.sequence]
			return err == nil && w.tells && seen && (id == nil || *id == w.settled)
		}
		if w.quiet && still() {
			continue
		}
		if w.quiet { // the source may have been notified, and have read it all
			w.sequence, w.settled, w.tells = w.source.Numbering()
		}
		w.quiet = still()
		w.runner.note(w)
	}
}

// note takes over whether the source has nothing to read, and wakes it if it has.
func (r *runner) note(w *watch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.lag != w.source: // it has been closed
	case !w.quiet:
		r.quietSince = time.Time{}
		poke(r.wake)
	case r.quietSince.IsZero() || r.quietAt != w.settled:
		r.quietSince, r.quietAt = time.Now(), w.settled
	}
}

// Sequences returns the last values of sequences: nil for one that has handed out
// nothing, and no entry for one that is gone or may not be read.
func (b *Builder) Sequences(ctx context.Context, oids []uint32) (map[uint32]*int64, error) {
	rows, err := b.Pool.Query(ctx, `
		SELECT s.seqrelid, pg_sequence_last_value(s.seqrelid) FROM pg_catalog.pg_sequence s
		WHERE s.seqrelid = ANY($1) AND has_sequence_privilege(s.seqrelid, 'SELECT')`, oids)
	if err != nil {
		return nil, err
	}
	values := make(map[uint32]*int64, len(oids))
	var oid uint32
	var value *int64
	_, err = pgx.ForEachRow(rows, []any{&oid, &value}, func() error {
		if value != nil {
			v := *value
			values[oid] = &v
		} else {
			values[oid] = nil
		}
		return nil
	})
	return values, err
}
