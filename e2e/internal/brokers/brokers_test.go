package brokers

import (
	"context"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/only"
)

func TestMain(m *testing.M) { only.E2E(m) }

// TestServersSurvive breaks every server in every way and wants each back at its
// old address.
func TestServersSurvive(t *testing.T) {
	fleet, err := New(t.Context(), Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fleet.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if err := fleet.Start(t.Context(), Names()...); err != nil {
		t.Fatal(err)
	}
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := fleet.Server(name)
			for _, step := range []struct {
				name       string
				harm, cure func(context.Context) error
			}{
				{"pause", s.Pause, s.Unpause},
				{"disconnect", s.Disconnect, s.Connect},
				{"kill", s.Kill, s.Start},
				{"stop", s.Stop, s.Start},
			} {
				began := time.Now()
				if err := step.harm(t.Context()); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				probe, cancel := context.WithTimeout(t.Context(), time.Second)
				if err := s.spec.ready(probe, s.URL); err == nil {
					t.Errorf("%s: %s still answers", step.name, name)
				}
				cancel()
				if err := step.cure(t.Context()); err != nil {
					t.Fatalf("after %s: %v", step.name, err)
				}
				if err := s.Ready(t.Context()); err != nil {
					t.Fatalf("after %s: %v", step.name, err)
				}
				t.Logf("%s: back after %v", step.name, time.Since(began).Round(time.Millisecond))
			}
		})
	}
}
