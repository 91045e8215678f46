package steps_test

import (
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine/steps"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func TestFailuresAreReported(t *testing.T) {
	t.Parallel()
	var reports []string
	f := steps.New(slog.New(slog.DiscardHandler), func(err error) {
		if err == nil {
			err = errors.New("well")
		}
		reports = append(reports, err.Error())
	})
	receive, publish := f.Step("receive"), f.Step("publish")

	away := errors.New("the server is away")
	publish.Recovered() // it did not fail
	publish.Failed(away)
	publish.Failed(away)
	receive.Failed(away)
	publish.Recovered()
	receive.Recovered()

	want := []string{"publish: the server is away", "receive: the server is away", "well"}
	if !slices.Equal(reports, want) {
		t.Errorf("the reports are %q, want %q", reports, want)
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	f := steps.New(slog.New(slog.DiscardHandler), func(error) {})
	s := f.Step("publish")
	away := errors.New("the server is away")
	for range 20 {
		s.Failed(away)
	}
	if d := s.Failed(away); d < backoff.DefaultMax/2 || d > backoff.DefaultMax {
		t.Errorf("after many failures the delay is %v, want up to %v", d, backoff.DefaultMax)
	}
	if d := s.Failed(relay.RetryAfter(away, time.Hour)); d != 5*time.Minute {
		t.Errorf("a far end that asks for an hour gets %v, want 5m", d)
	}
	s.Progressed()
	if d := s.Failed(away); d > backoff.DefaultMin {
		t.Errorf("after progress the delay is %v, want at most %v", d, backoff.DefaultMin)
	}
}
