package reshape

import (
	"testing"
	"time"
)

// A process that was suspended, or waited for a processor, has not evaluated meanwhile.
func TestPausesAreNoEvaluation(t *testing.T) {
	turn := newTurn()
	defer turn.end()
	for range 4 {
		turn.last = turn.last.Add(-time.Minute)
		for range stepsBetween {
			turn.Done()
		}
	}
	if turn.Err() != nil {
		t.Errorf("ended after four pauses: %v", turn.Err())
	}
	for turn.Err() == nil {
		turn.Done()
	}
	select {
	case <-turn.Done():
	default:
		t.Error("has an error, but is not done")
	}
}
