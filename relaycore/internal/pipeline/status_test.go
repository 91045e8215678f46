package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/internal/supervisor"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// events records what a run reports.
type events struct {
	opened  []supervisor.Opened
	changed []error
}

func (e *events) Opened(o supervisor.Opened) { e.opened = append(e.opened, o) }
func (e *events) Changed(err error)          { e.changed = append(e.changed, err) }

func TestStatusOfACursor(t *testing.T) {
	t.Parallel()
	away := errors.New("broker away\nsince noon")
	for name, tc := range map[string]struct {
		changes   []error
		abandoned bool
		end       error
		want      []cursorStatus
	}{
		"runs and stops":         {changes: []error{nil}, want: []cursorStatus{{store.StatusRunning, ""}, {store.StatusStopped, ""}}},
		"fails and recovers":     {changes: []error{away, nil}, want: []cursorStatus{{store.StatusRetrying, "broker away; since noon"}, {store.StatusRunning, ""}, {store.StatusStopped, ""}}},
		"the same again":         {changes: []error{away, away}, end: away, want: []cursorStatus{{store.StatusRetrying, "broker away; since noon"}, {store.StatusRetrying, "broker away; since noon"}}},
		"stops while it fails":   {changes: []error{away}, want: []cursorStatus{{store.StatusRetrying, "broker away; since noon"}}},
		"needs an operator":      {end: relay.Fatal(errors.New("no stream")), want: []cursorStatus{{store.StatusFailed, "no stream"}}},
		"fails to open":          {end: away, want: []cursorStatus{{store.StatusRetrying, "broker away; since noon"}}},
		"is abandoned":           {changes: []error{nil}, abandoned: true, end: context.Canceled, want: []cursorStatus{{store.StatusRunning, ""}}},
		"stops before it opened": {want: []cursorStatus{{store.StatusStopped, ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var written []cursorStatus
				set := func(_ context.Context, status, reason string) error {
					written = append(written, cursorStatus{status, reason})
					return errors.New("the database is away") // which must not matter
				}
				ctx, abandon := context.WithCancel(t.Context())
				defer abandon()
				reported := new(events)
				s := newStatus(set, &supervisor.Job{Events: reported, Logger: slog.New(slog.DiscardHandler)}, relaycfg.NewConcealer())
				for _, err := range tc.changes {
					s.changed(err)
					synctest.Wait()
				}
				if tc.abandoned {
					abandon()
				}
				s.end(ctx, tc.end)
				if diff := cmp.Diff(tc.want, written, cmp.AllowUnexported(cursorStatus{})); diff != "" {
					t.Errorf("written, -want +got\n%s", diff)
				}
				if len(reported.changed) != len(tc.changes) {
					t.Errorf("%d changes reported, want %d", len(reported.changed), len(tc.changes))
				}
			})
		})
	}
}
