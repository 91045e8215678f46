package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func TestAwaitLogsEachProblemOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var p phase
		p.start()
		var log bytes.Buffer
		refused, missing := errors.New("connection refused"), errors.New("schema is missing\nrun migrate")
		began := time.Now()
		check := func(context.Context) error {
			switch took := time.Since(began); {
			case took < time.Minute:
				return refused
			case took < 2*time.Minute:
				return missing
			}
			return nil
		}

		done := make(chan bool)
		go func() { done <- p.await(t.Context(), check, slog.New(slog.NewTextHandler(&log, nil))) }()
		for _, want := range []error{refused, missing} {
			time.Sleep(59 * time.Second)
			if err := p.ready(); !errors.Is(err, want) {
				t.Errorf("after %s /readyz reports %v, want %v", time.Since(began), err, want)
			}
		}
		if !<-done {
			t.Error("await = false, want true")
		}

		messages := regexp.MustCompile(`msg=.*`).FindAllString(log.String(), -1)
		want := []string{
			`msg="database not ready, retrying" err="connection refused"`,
			`msg="database not ready, retrying" err="schema is missing; run migrate"`,
			`msg="database ready"`,
		}
		if diff := cmp.Diff(want, messages); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
	})
}

func TestAwaitStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var p phase
		p.start()
		stop, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()

		began := time.Now()
		down := func(context.Context) error { return errors.New("down") }
		if p.await(stop, down, slog.New(slog.DiscardHandler)) {
			t.Error("await = true, want false")
		}
		if took := time.Since(began); took != time.Hour {
			t.Errorf("await returned after %s, want an hour", took)
		}
	})
}

// TestHealthNamesTheServer: a server that does not answer is named from the start.
func TestHealthNamesTheServer(t *testing.T) {
	t.Parallel()
	d, err := newDaemon(t.Context(), Config{
		PostgresURL: "postgres://u:hunter2@db.example:5433/x?sslmode=disable", MaxConnections: 16,
		Registry: new(relay.Registry), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if got := strings.Join(d.health().Reasons, "; "); got != "PostgreSQL: connecting to db.example:5433" {
		t.Errorf("reasons %q, want the server's address", got)
	}
}

func TestHealthBeforeTheDatabaseIsReady(t *testing.T) {
	t.Parallel()
	d := &daemon{cfg: Config{Name: "relay-nats", Version: "1", Group: "default"}}
	d.phase.start()
	d.phase.wait(errors.New("no catalog\nrun migrate"))

	h := d.health()
	if h.Status != "unhealthy" || len(h.Reasons) != 1 || !strings.Contains(h.Reasons[0], "PostgreSQL: no catalog; run migrate") {
		t.Errorf("health = %+v", h)
	}
}
