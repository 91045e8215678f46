package supervisor

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

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
