package together_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/together"
)

// count is a question whose answers are numbered. An answer takes a second.
type count struct{ asked int }

func (n *count) ask(ctx context.Context) (int, error) {
	n.asked++
	asked := n.asked
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return asked, nil
}

// TestDo: callers that come while another one asks wait for one answer that began later.
func TestDo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g together.Group[string, int]
		var n count
		var mu sync.Mutex
		var answers []int
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				answer, err := g.Do(t.Context(), "q", time.Now(), n.ask)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				answers = append(answers, answer)
			})
		}
		wg.Wait()
		slices.Sort(answers)
		if want := []int{1, 2, 2, 2, 2, 2, 2, 2, 2, 2}; !slices.Equal(answers, want) {
			t.Errorf("answers %v, want %v", answers, want)
		}
	})
}

// TestSince: an answer is as recent as the caller needs it, and questions are kept apart.
func TestSince(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g together.Group[string, int]
		var n count
		do := func(question string, since time.Time) int {
			t.Helper()
			answer, err := g.Do(t.Context(), question, since, n.ask)
			if err != nil {
				t.Fatal(err)
			}
			return answer
		}
		began := time.Now()
		got := []int{do("q", began), do("q", began), do("other", began), do("q", began.Add(time.Nanosecond)), do("q", began)}
		if want := []int{1, 1, 2, 3, 3}; !slices.Equal(got, want) {
			t.Errorf("answers %v, want %v", got, want)
		}
	})
}

// TestErrors: callers do not get the error of another one. Each asks for itself.
func TestErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g together.Group[string, int]
		broken := errors.New("broken")
		fails := func(context.Context) (int, error) {
			time.Sleep(time.Second)
			return 0, broken
		}
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := g.Do(t.Context(), "q", began, fails); !errors.Is(err, broken) {
				t.Errorf("error %v, want %v", err, broken)
			}
		})
		synctest.Wait()
		var asked atomic.Int64
		for range 3 {
			wg.Go(func() {
				n, err := g.Do(t.Context(), "q", began, func(context.Context) (int, error) {
					time.Sleep(time.Second)
					return int(asked.Add(1)), nil
				})
				if n == 0 || err != nil {
					t.Errorf("Do() = %d, %v, want an answer of its own", n, err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(began); asked.Load() != 3 || took != 2*time.Second {
			t.Errorf("%d asked after the first within %s, want 3 at once", asked.Load(), took)
		}
		var n count
		if answer, err := g.Do(t.Context(), "q", began, n.ask); answer != 1 || err != nil {
			t.Errorf("Do() = %d, %v, want 1: an error is not kept", answer, err)
		}
	})
}

// TestDoEnds: a caller does not wait beyond its context.
func TestDoEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g together.Group[string, int]
		var n count
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = g.Do(t.Context(), "q", time.Now(), n.ask) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := g.Do(ctx, "q", time.Now(), n.ask); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want that of the context", err)
		}
		wg.Wait()
	})
}
