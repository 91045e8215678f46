package pipeline

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/internal/supervisor"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

const statusTimeout = 5 * time.Second

// status keeps the status of the cursor current, for operators and for the next
// owner, which trusts only an orderly end. It writes in the background, because the
// database may be what fails.
type status struct {
	set   func(ctx context.Context, status, reason string) error
	job   *supervisor.Job
	hide  *relaycfg.Concealer
	dirty chan struct{}
	done  chan struct{}

	mu      sync.Mutex
	failing bool
	latest  cursorStatus
}

type cursorStatus struct{ status, reason string }

func newStatus(
	ctx context.Context, set func(ctx context.Context, status, reason string) error, job *supervisor.Job, hide *relaycfg.Concealer,
) *status {
	s := &status{set: set, job: job, hide: hide, dirty: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		var written cursorStatus
		for range s.dirty {
			s.mu.Lock()
			latest := s.latest
			s.mu.Unlock()
			if latest != written {
				s.write(ctx, latest)
				written = latest
			}
		}
	}()
	return s
}

// changed reports that the pipeline fails for now, or with nil that it recovered.
func (s *status) changed(err error) {
	err = s.hide.Error(err)
	s.job.Events.Changed(err)
	latest := cursorStatus{store.StatusRunning, ""}
	if err != nil {
		latest = cursorStatus{store.StatusRetrying, pg.OneLine(err)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing, s.latest = err != nil, latest
	select {
	case s.dirty <- struct{}{}:
	default: // the writer has not read the one before, and will read this one
	}
}

// end records how the run ended. After an abandoned run nothing is recorded: the
// next owner has to read back what arrived.
func (s *status) end(ctx context.Context, err error) {
	close(s.dirty)
	<-s.done
	switch {
	case ctx.Err() != nil:
	case err == nil && !s.failing:
		s.write(ctx, cursorStatus{store.StatusStopped, ""})
	case err != nil && relay.IsFatal(err):
		s.write(ctx, cursorStatus{store.StatusFailed, pg.OneLine(err)})
	case err != nil:
		s.write(ctx, cursorStatus{store.StatusRetrying, pg.OneLine(err)})
	}
}

func (s *status) write(ctx context.Context, latest cursorStatus) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusTimeout)
	defer cancel()
	if err := s.set(ctx, latest.status, latest.reason); err != nil && !errors.Is(err, engine.ErrFenced) {
		s.job.Logger.Debug("cannot record the status", "err", err)
	}
}
