package supervisor

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
)

// idleSource is settled up to an id of sequence 7.
type idleSource struct{ settled int64 }

func (s *idleSource) Lag(context.Context) (int64, float64, error) { return 0, 0, nil }

func (s *idleSource) Numbering() (uint32, int64, bool) { return 7, s.settled, true }

// TestPulse looks as often as a pipeline asks for, ten times a second or six times a
// minute, and wakes its source when the sequence moves, but not before.
func TestPulse(t *testing.T) {
	for name, tt := range map[string]struct {
		every       time.Duration
		least, most int64 // looks a minute
	}{
		"often":  {100 * time.Millisecond, 590, 610},
		"rarely": {10 * time.Second, 5, 7},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var last, looks atomic.Int64
				last.Store(3)
				s := &Supervisor{cfg: Config{Sequences: func(context.Context, []uint32) (map[uint32]*int64, error) {
					looks.Add(1)
					id := last.Load()
					return map[uint32]*int64{7: &id}, nil
				}}}
				source := &idleSource{settled: 3}
				r := &runner{lag: source, poll: tt.every, wake: make(chan struct{}, 1)}
				s.runners = map[catalog.Key]*runner{{Name: "orders"}: r}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go s.pulse(ctx)

				time.Sleep(time.Minute)
				synctest.Wait()
				if n := looks.Load(); n < tt.least || n > tt.most {
					t.Errorf("%d looks in a minute, want %d to %d", n, tt.least, tt.most)
				}
				if quiet := isQuiet(r); !quiet || len(r.wake) > 0 {
					t.Errorf("nothing has moved: quiet %v, woken %v", quiet, len(r.wake) > 0)
				}

				last.Store(4)
				time.Sleep(tt.every + mostPause)
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
	return r.quiet
}
