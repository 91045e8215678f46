package backoff_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
)

func TestDelayDoublesWithinBounds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		backoff backoff.Backoff
		want    []time.Duration
	}{
		"zero value": {backoff.Backoff{}, []time.Duration{10, 20, 40, 80, 160, 320, 640, 1000, 1000}},
		"bounds":     {backoff.Backoff{Min: 300 * time.Millisecond, Max: 700 * time.Millisecond}, []time.Duration{300, 600, 700, 700}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range 2 { // the second time after Reset
				for i, want := range tc.want {
					want *= time.Millisecond
					if got := tc.backoff.Next(); got < want/2 || got > want {
						t.Errorf("delay %d = %v, want between %v and %v", i, got, want/2, want)
					}
				}
				tc.backoff.Reset()
			}
		})
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	closed := make(chan struct{})
	close(closed)
	for name, tc := range map[string]struct {
		cancel time.Duration // after which the context ends; 0 for never
		wake   <-chan struct{}
		slept  time.Duration
		want   error
	}{
		"the whole time": {slept: time.Minute},
		"cancelled":      {cancel: time.Second, slept: time.Second, want: gone},
		"woken":          {wake: closed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if tc.cancel > 0 {
					time.AfterFunc(tc.cancel, func() { cancel(gone) })
				}
				began := time.Now()
				err := backoff.Wait(ctx, time.Minute, tc.wake)
				if slept := time.Since(began); !errors.Is(err, tc.want) || slept != tc.slept {
					t.Errorf("Wait = %v after %v, want %v after %v", err, slept, tc.want, tc.slept)
				}
			})
		})
	}
}

func TestOutlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		lasting, end := backoff.Outlive(ctx, time.Minute)
		defer end()
		cancel(gone)
		cancelled := time.Now()
		<-lasting.Done()
		if after := time.Since(cancelled); after != time.Minute {
			t.Errorf("the context ended %v after the one that it outlives, want a minute", after)
		}
		if cause := context.Cause(lasting); !errors.Is(cause, gone) {
			t.Errorf("the context ended because of %v, want the cause of the one that it outlives", cause)
		}

		lasting, end = backoff.Outlive(ctx, time.Minute)
		end()
		if lasting.Err() == nil {
			t.Error("the context did not end with its cancel")
		}
	})
}
