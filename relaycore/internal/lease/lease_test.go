package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// fakeConn answers as the test sets it.
type fakeConn struct {
	mu        sync.Mutex
	beat      func(ctx context.Context) error
	closed    chan struct{} // closed: the connection is seen to close
	interrupt chan struct{}
	held      map[store.Key]bool
	tried     []int // how many locks each TryLock asked for
	epoch     int64
	beats     int
	last      time.Time // when the last answered beat was asked
}

func newFakeConn() *fakeConn {
	return &fakeConn{beat: func(context.Context) error { return nil }, closed: make(chan struct{}), interrupt: make(chan struct{}, 1), held: make(map[store.Key]bool)}
}

func (w *fakeConn) Beat(ctx context.Context) ([]Instance, error) {
	asked := time.Now()
	w.mu.Lock()
	beat := w.beat
	w.mu.Unlock()
	if err := beat(ctx); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.beats++
	w.last = asked
	return []Instance{{ID: "a"}}, nil
}

// answered returns how many beats were answered, and when the last was asked.
func (w *fakeConn) answered() (int, time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.beats, w.last
}

func (w *fakeConn) onBeat(beat func(ctx context.Context) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.beat = beat
}

func (w *fakeConn) Idle(until time.Time) error {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-w.interrupt:
		return nil
	case <-w.closed:
		return errors.New("EOF")
	}
}

func (w *fakeConn) Interrupt() {
	select {
	case w.interrupt <- struct{}{}:
	default:
	}
}

func (w *fakeConn) TryLock(_ context.Context, keys []store.Key) (map[store.Key]int64, error) {
	time.Sleep(time.Millisecond)
	w.tried = append(w.tried, len(keys))
	if slices.Contains(keys, stuck) {
		return nil, errors.New("lock timeout")
	}
	epochs := make(map[store.Key]int64)
	for _, key := range keys {
		if !w.held[key] {
			w.held[key] = true
			w.epoch++
			epochs[key] = w.epoch
		}
	}
	return epochs, nil
}

func (w *fakeConn) Unlock(_ context.Context, key store.Key) error {
	w.held[key] = false
	return nil
}
func (w *fakeConn) Drain(context.Context) error { return nil }
func (w *fakeConn) Broken() bool                { return false }
func (w *fakeConn) Close(context.Context)       {}

var (
	orders = store.Key{Direction: relay.Forward, Name: "orders"}
	stuck  = store.Key{Direction: relay.Forward, Name: "stuck"} // its row is locked
)

func startKeeper(t *testing.T, conns ...*fakeConn) *Keeper {
	t.Helper()
	k := New(Config{
		Logger: slog.New(slog.DiscardHandler),
		Connect: func(context.Context) (Conn, error) {
			if len(conns) == 0 {
				return nil, errors.New("refused")
			}
			w := conns[0]
			conns = conns[1:]
			return w, nil
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = k.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	synctest.Wait()
	return k
}

// holdUntilLost holds the lease until it is lost and returns when that was.
func holdUntilLost(t *testing.T, k *Keeper, holding chan<- struct{}) (time.Time, error) {
	t.Helper()
	var at time.Time
	err := k.Hold(t.Context(), orders, func(ctx context.Context, l *Lease) error {
		close(holding)
		<-ctx.Done()
		at = time.Now()
		if l.Valid() && errors.Is(context.Cause(ctx), ErrLost) {
			return fmt.Errorf("the lease is lost and valid")
		}
		return ctx.Err()
	})
	return at, err
}

func TestHoldWhileBeatsAreAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newFakeConn()
		k := startKeeper(t, w)
		err := k.Hold(t.Context(), orders, func(ctx context.Context, l *Lease) error {
			if err := k.Hold(ctx, orders, nil); !errors.Is(err, ErrHeld) {
				t.Errorf("second Hold = %v, want ErrHeld", err)
			}
			for range 100 {
				time.Sleep(time.Second)
				if !l.Valid() || ctx.Err() != nil {
					t.Fatalf("lost: %v", context.Cause(ctx))
				}
			}
			return nil
		})
		if err != nil || w.held[orders] {
			t.Errorf("Hold = %v, still locked %v", err, w.held[orders])
		}
		if beats, _ := w.answered(); beats < 490 || beats > 505 {
			t.Errorf("%d beats in 100s, want five a second", beats)
		}
		if err := k.Hold(t.Context(), orders, func(_ context.Context, l *Lease) error {
			if l.Epoch != 2 {
				t.Errorf("epoch %d, want 2", l.Epoch)
			}
			return errors.New("its own")
		}); err == nil || err.Error() != "its own" {
			t.Errorf("Hold = %v, want fn's error", err)
		}
	})
}

func TestHoldEndsWithTheTrust(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newFakeConn()
		k := startKeeper(t, w)
		holding := make(chan struct{})
		go func() {
			<-holding
			time.Sleep(10 * time.Second)
			w.onBeat(func(ctx context.Context) error { // the network is gone
				<-ctx.Done()
				return ctx.Err()
			})
		}()
		at, err := holdUntilLost(t, k, holding)
		if !errors.Is(err, ErrLost) {
			t.Fatalf("Hold = %v, want ErrLost", err)
		}
		_, last := w.answered()
		if trusted := at.Sub(last); trusted > defaultTrust || trusted < defaultTrust-time.Second {
			t.Errorf("stopped %s after the last answered beat, want %s", trusted, defaultTrust)
		}
		if serverPatience <= defaultTrust {
			t.Error("the server must be more patient than we are")
		}
	})
}

func TestHoldEndsWhenTheConnectionCloses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, next := newFakeConn(), newFakeConn()
		k := startKeeper(t, w, next)
		holding := make(chan struct{})
		var closed time.Time
		go func() {
			<-holding
			time.Sleep(10*time.Second + 100*time.Millisecond)
			closed = time.Now()
			close(w.closed)
		}()
		at, err := holdUntilLost(t, k, holding)
		if !errors.Is(err, ErrLost) || at.Sub(closed) > time.Millisecond {
			t.Errorf("Hold = %v, %s after the close; want ErrLost at once", err, at.Sub(closed))
		}
		time.Sleep(time.Second)
		if err := k.Hold(t.Context(), orders, func(context.Context, *Lease) error { return nil }); err != nil {
			t.Errorf("Hold in the next session = %v", err)
		}
	})
}

// A process that was stopped and continued must not trust what it held.
func TestStoppedProcessIsNotTrusted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newFakeConn()
		k := startKeeper(t, w)
		err := k.Hold(t.Context(), orders, func(ctx context.Context, l *Lease) error {
			stopped := make(chan struct{})
			w.onBeat(func(context.Context) error {
				time.Sleep(time.Minute) // nothing of the session runs
				close(stopped)
				return nil
			})
			time.Sleep(defaultTrust + time.Second)
			if l.Valid() {
				t.Error("the lease is valid after its trust ended")
			}
			<-stopped
			<-ctx.Done()
			return nil
		})
		if !errors.Is(err, ErrLost) {
			t.Errorf("Hold = %v, want ErrLost: an answer that comes too late renews nothing", err)
		}
	})
}

func TestNoSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := startKeeper(t)
		if err := k.Hold(t.Context(), orders, nil); !errors.Is(err, ErrNoSession) {
			t.Errorf("Hold = %v, want ErrNoSession", err)
		}
		if _, err := k.Members(); err == nil || err.Error() != "refused" {
			t.Errorf("Members = %v, want why there is no session", err)
		}
	})
}

// A twin waits for twice the server's patience, and then ends. The lock may belong to
// a session that the server has not given up yet.
func TestTwinGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		held := &store.HeldError{ID: "same", PID: 4711, Address: "192.0.2.7", Started: time.Now()}
		k := New(Config{
			Logger:  slog.New(slog.DiscardHandler),
			Connect: func(context.Context) (Conn, error) { return nil, held },
		})
		began := time.Now()
		err := k.Run(t.Context())
		if took := time.Since(began); !errors.Is(err, held) || took < 2*serverPatience || took > 2*serverPatience+time.Second {
			t.Errorf("Run = %v after %s, want the holder after %s", err, took, 2*serverPatience)
		}
	})
}

// A restarted process takes over from a session that ends within the server's patience.
func TestRestartOutlivesItsFormerSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		k := New(Config{
			Logger: slog.New(slog.DiscardHandler),
			Connect: func(context.Context) (Conn, error) {
				if time.Since(began) < serverPatience {
					return nil, &store.HeldError{ID: "same"}
				}
				return newFakeConn(), nil
			},
		})
		ctx, cancel := context.WithTimeout(t.Context(), 3*serverPatience)
		defer cancel()
		go func() {
			time.Sleep(serverPatience + time.Second)
			if _, err := k.Members(); err != nil {
				t.Errorf("no session: %v", err)
			}
		}()
		if err := k.Run(ctx); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// The locks of a share are taken by one statement, and a lock that cannot be taken fails
// alone.
func TestLocksAreTakenTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newFakeConn()
		w.held[orders] = true
		k := startKeeper(t, w)

		hold := func(keys []store.Key) (errs []error) {
			hold := make(chan error)
			for _, key := range keys {
				go func() {
					hold <- k.Hold(t.Context(), key, func(context.Context, *Lease) error { return nil })
				}()
			}
			for range keys {
				if err := <-hold; err != nil {
					errs = append(errs, err)
				}
			}
			return errs
		}
		keys := []store.Key{orders}
		for i := range 100 {
			keys = append(keys, store.Key{Direction: relay.Forward, Name: fmt.Sprint("p", i)})
		}
		if errs := hold(keys); len(errs) != 1 || !errors.Is(errs[0], ErrHeld) {
			t.Errorf("errors are %v, want one that is ErrHeld", errs)
		}
		if len(w.tried) > 5 {
			t.Errorf("%d statements took 101 locks: %v", len(w.tried), w.tried)
		}
		if errs := hold(append(keys, stuck)); len(errs) != 2 {
			t.Errorf("errors are %v, want that of the held lock and that of the stuck one", errs)
		}
	})
}
