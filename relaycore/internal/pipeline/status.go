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
// database may be what fails. The goroutine ends when there is nothing to write.
type status struct {
	set    func(ctx context.Context, status, reason string) error
	job    *supervisor.Job
	hide   *relaycfg.Concealer
	writer sync.WaitGroup

	mu      sync.Mutex
	failing bool
	writing bool // the goroutine runs
	latest  cursorStatus
	written cursorStatus
}

type cursorStatus struct{ status, reason string }

func newStatus(set func(ctx context.Context, status, reason string) error, job *supervisor.Job, hide *relaycfg.Concealer) *status {
	return &status{set: set, job: job, hide: hide}
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
	if !s.writing {
		s.writing = true
		s.writer.Go(s.writeLatest)
	}
}

func (s *status) writeLatest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.written != s.latest {
		s.written = s.latest
		s.mu.Unlock()
		s.write(s.written) // nothing else changes it
		s.mu.Lock()
	}
	s.writing = false
}

// end records how the run ended. After an abandoned run nothing is recorded: the
// next owner has to read back what arrived.
func (s *status) end(ctx context.Context, err error) {
	s.writer.Wait()
	switch {
	case ctx.Err() != nil:
	case err == nil && !s.failing:
		s.write(cursorStatus{store.StatusStopped, ""})
	case err != nil && relay.IsFatal(err):
		s.write(cursorStatus{store.StatusFailed, pg.OneLine(err)})
	case err != nil:
		s.write(cursorStatus{store.StatusRetrying, pg.OneLine(err)})
	}
}

// write records latest even if the run was cancelled.
func (s *status) write(latest cursorStatus) {
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	if err := s.set(ctx, latest.status, latest.reason); err != nil && !errors.Is(err, engine.ErrFenced) {
		s.job.Logger.Debug("cannot record the status", "err", err)
	}
}
