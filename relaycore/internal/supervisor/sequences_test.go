package supervisor

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
)

// numberedSource is settled up to an id of sequence 7.
type numberedSource struct{ settled atomic.Int64 }

func (s *numberedSource) Lag(context.Context) (int64, float64, error) { return 0, 0, nil }

func (s *numberedSource) Numbering() (uint32, int64, bool) { return 7, s.settled.Load(), true }

// A sequence is read as often as its pipeline asks for, and half as often once it has
// been quiet for long. The source is woken when the sequence moves, and not before.
func TestWatchSequences(t *testing.T) {
	for name, tt := range map[string]struct {
		every       time.Duration
		busy        bool  // each second there is a row, which a notification announces
		least, most int64 // looks a minute
	}{
		"often":    {every: 100 * time.Millisecond, least: 100 + 250 - 10, most: 100 + 250 + 20},
		"rarely":   {every: 10 * time.Second, least: 3, most: 4},
		"notified": {every: 100 * time.Millisecond, busy: true, least: 590, most: 610},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var last, looks atomic.Int64
				source := &numberedSource{}
				row := func() {
					last.Add(1)
					source.settled.Add(1)
				}
				row()
				s := &Supervisor{cfg: Config{Sequences: func(context.Context, []uint32) (map[uint32]*int64, error) {
					looks.Add(1)
					id := last.Load()
					return map[uint32]*int64{7: &id}, nil
				}}}
				r := &runner{opened: Opened{Lag: source, PollInterval: tt.every}, wake: make(chan struct{}, 1)}
				s.runners = map[catalog.Key]*runner{{Name: "orders"}: r}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go s.watchSequences(ctx)

				for range 60 {
					time.Sleep(time.Second)
					synctest.Wait()
					if tt.busy {
						row()
					}
				}
				if n := looks.Load(); n < tt.least || n > tt.most {
					t.Errorf("%d looks in a minute, want %d to %d", n, tt.least, tt.most)
				}
				if quiet := isQuiet(r); !quiet || len(r.wake) > 0 {
					t.Errorf("nothing is there to read: quiet %v, woken %v", quiet, len(r.wake) > 0)
				}

				last.Add(1)
				time.Sleep(2*tt.every + maxPause)
				synctest.Wait()
				if quiet := isQuiet(r); quiet || len(r.wake) == 0 {
					t.Errorf("the sequence has moved: quiet %v, woken %v", quiet, len(r.wake) > 0)
				}
			})
		})
	}
}

func isQuiet(r *runner) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.quiet.since.IsZero()
}
