package supervisor

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
)

// lagging is a source that is so far behind, or cannot be asked.
type lagging struct {
	rows int64
	err  error
}

func (l *lagging) Lag(context.Context) (int64, float64, error) { return l.rows, 1, l.err }

// A lag that can no longer be measured is not shown as it was when it could.
func TestLagIsKnownOrNotShown(t *testing.T) {
	t.Parallel()
	metrics, err := observe.NewMetrics(prometheus.NewRegistry(), "b", "v", "g")
	if err != nil {
		t.Fatal(err)
	}
	source := &lagging{rows: 5}
	r := &runner{opened: Opened{Lag: source}, meter: metrics.Pipeline(testPipeline("a", "1").Key), log: slog.New(slog.DiscardHandler)}
	for i, step := range []struct {
		err  error
		want bool
	}{{nil, true}, {errors.New("no connection is free"), false}, {nil, true}} {
		source.err = step.err
		r.measureLag(t.Context())
		if n := r.meter.Numbers(); (n.LagRows != nil) != step.want || (n.LagSeconds != nil) != step.want || step.want && *n.LagRows != 5 {
			t.Errorf("step %d, with error %v: lag is shown = %v, want %v", i, step.err, n.LagRows != nil, step.want)
		}
	}
}

// A process without a record in relay_instances owns nothing, and must not look healthy.
func TestProcessWithoutRecordIsUnhealthy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, catalog.Snapshot{testPipeline("a", "1")})
		defer st.end()
		h := st.s.Health()
		if h.Status != observe.Healthy || h.CatalogAge == nil || *h.CatalogAge > 10 {
			t.Fatalf("health = %+v, want healthy with a recent catalog", h)
		}
		st.keeper.set()
		time.Sleep(time.Second)
		synctest.Wait()
		h = st.s.Health()
		if h.Status != observe.Unhealthy || h.PipelinesOwned != 0 || st.state("a").State != observe.StateUnserved || len(h.Reasons) != 2 {
			t.Errorf("health without a record = %+v, want unhealthy with two reasons", h)
		}
	})
}

// A catalog that is not read any longer must be seen.
func TestStaleCatalogIsUnhealthy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, nil)
		defer st.end()
		st.s.mu.Lock()
		st.s.loadedAt = time.Now().Add(-time.Hour)
		st.s.mu.Unlock()
		if h := st.s.Health(); h.Status != observe.Unhealthy {
			t.Errorf("health with a catalog of an hour ago = %+v, want unhealthy", h)
		}
	})
}

// Dead letters degrade a pipeline that works. One that delivers nothing fails.
func TestDeadLettersAreVisible(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, catalog.Snapshot{testPipeline("a", "1")})
		defer st.end()
		meter := st.s.cfg.Metrics.Pipeline(testPipeline("a", "1").Key)
		meter.SetDeadLetters(3, 4)
		h := st.s.Health()
		const warning = `forward pipeline "a" has 3 dead letters and 4 parked messages`
		if h.Status != observe.Degraded || len(h.Warnings) != 1 || h.Warnings[0] != warning {
			t.Errorf("health with dead letters = %+v, want degraded with %s", h, warning)
		}
		meter.DeadLettered(3)
		if h := st.s.Health(); h.Status != observe.Unhealthy || st.state("a").State != observe.StateFailing {
			t.Errorf("health without a delivery = %+v, want unhealthy and failing", h)
		}
		meter.Published(1, 1, time.Millisecond)
		if st.state("a").State != observe.StateRunning {
			t.Errorf("the pipeline is %s after a delivery", st.state("a").State)
		}
	})
}
