package supervisor

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// numbered is a source whose rows a sequence numbers.
type numbered interface {
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
	const most = 100 * time.Millisecond
	var due []watch
	for wait := most; ; {
		timer := time.NewTimer(wait - time.Duration(time.Now().UnixNano())%wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		wait, due = most, due[:0]
		now := time.Now()
		s.each(func(r *runner) {
			source, interval := r.watched()
			if source == nil {
				return
			}
			wait = min(wait, max(interval, 5*time.Millisecond))
			if now.Sub(r.asked) >= interval {
				due = append(due, watch{runner: r, source: source})
			}
		})
		if len(due) > 0 {
			s.look(ctx, due)
		}
		for i := range due {
			due[i].asked = now
		}
		clear(due) // a runner may have ended
	}
}

// watch is a source whose sequence is looked at.
type watch struct {
	*runner
	source   numbered
	sequence uint32
	settled  int64
}

// look asks for the sequences of the sources and wakes those that have to read.
func (s *Supervisor) look(ctx context.Context, due []watch) {
	oids := make([]uint32, 0, len(due))
	for i := range due {
		w := &due[i]
		var ok bool
		if w.sequence, w.settled, ok = w.source.Numbering(); ok {
			oids = append(oids, w.sequence)
		}
	}
	slices.Sort(oids)
	oids = slices.Compact(oids) // pipelines may share an outbox
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	last, err := s.cfg.Sequences(ctx, oids)
	for i := range due {
		w := &due[i]
		id, seen := last[w.sequence]
		w.setQuiet(err == nil && seen && (id == nil || *id == w.settled))
	}
}

// watched returns the source if its sequence is to be watched, and how often.
func (r *runner) watched() (numbered, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	source, _ := r.lag.(numbered)
	return source, r.poll
}

// setQuiet wakes the source unless it has nothing to read.
func (r *runner) setQuiet(quiet bool) {
	r.mu.Lock()
	r.quiet = quiet
	r.mu.Unlock()
	if !quiet {
		poke(r.wake)
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
