package brokers

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/e2e/internal/only"
)

func TestMain(m *testing.M) { only.E2E(m) }

// newFleet returns a fleet without servers, which ends with the test.
func newFleet(t *testing.T) *Fleet {
	t.Helper()
	fleet, err := New(t.Context(), Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fleet.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return fleet
}

// TestServersSurvive breaks every server in every way and wants each back at its
// old address.
func TestServersSurvive(t *testing.T) {
	fleet := newFleet(t)
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

// TestCutSessionEnds disconnects PostgreSQL from the network while it works on an
// answer. No client is left to receive the answer, but the session and its transaction
// end soon. An open transaction would hold up every reader of the outbox.
func TestCutSessionEnds(t *testing.T) {
	fleet := newFleet(t)
	for _, name := range []string{"pg18", "redis"} { // the first address of the network is PostgreSQL's
		if err := fleet.Start(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	s, other := fleet.Server("pg18"), fleet.Server("redis")
	cut, err := pgx.Connect(t.Context(), s.URL+"?application_name=cut")
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		_, err := cut.Exec(t.Context(), `BEGIN; SELECT pg_current_xact_id(), pg_sleep(3)`)
		answer <- err
	}()
	await(t, s.URL, `SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'cut' AND wait_event = 'PgSleep'`)
	// Another container gets its address, so the server does not learn that the client has gone.
	for _, step := range []func(context.Context) error{s.Disconnect, other.Disconnect, other.Connect, s.Connect} {
		if err := step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	await(t, s.URL, `SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'cut'`)
	t.Logf("gone %v after the network was back", time.Since(began).Round(time.Millisecond))
	_ = cut.Close(t.Context())
	if err := <-answer; err == nil {
		t.Error("the client has got its answer")
	}
}

// await asks a database until the answer is true, for half a minute.
func await(t *testing.T, url, question string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		var yes bool
		if err := conn.QueryRow(t.Context(), question).Scan(&yes); err != nil {
			t.Fatal(err)
		}
		if yes {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still not true: %s", question)
		}
	}
}
