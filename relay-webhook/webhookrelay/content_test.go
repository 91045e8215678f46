package webhookrelay

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// TestLimit: requests share a context until the time of one of them is over, even if that
// is when its answer arrives.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimit(t.Context(), time.Second)
		defer l.close()
		request := func(takes time.Duration) (ctx context.Context, ended bool) {
			ctx, end := l.begin(&content{})
			time.Sleep(takes)
			synctest.Wait()
			ended = ctx.Err() != nil
			end()
			return ctx, ended
		}

		first, ended := request(900 * time.Millisecond)
		if ended {
			t.Error("a request ended before its time was over")
		}
		time.Sleep(time.Minute)
		second, ended := request(900 * time.Millisecond)
		if ended || second != first {
			t.Errorf("the next request ended %v, want the same context, which has not ended", ended)
		}
		if _, ended := request(time.Second); !ended {
			t.Error("a request lives beyond its time")
		}
		last, ended := request(900 * time.Millisecond)
		if ended || last == first {
			t.Errorf("the request after a timeout ended %v, want a new context, which has not ended", ended)
		}
		l.close()
		if last.Err() == nil {
			t.Error("a context lives beyond its worker's Publish")
		}
	})
}

// TestLimitOfAStream: each part that the endpoint takes moves the end of a stream's time.
// One that is read after the answer does not end the next request.
func TestLimitOfAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimit(t.Context(), time.Second)
		defer l.close()
		c := content{stream: new(relay.Stream)}
		ctx, end := l.begin(&c)
		for range 5 {
			time.Sleep(900 * time.Millisecond)
			c.moved()
		}
		if ctx.Err() != nil {
			t.Error("the request ended although the endpoint takes the stream")
		}
		end()
		c.moved()
		next, end := l.begin(&content{})
		defer end()
		time.Sleep(900 * time.Millisecond)
		c.moved()
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		if next.Err() != nil {
			t.Error("a late read of the stream ended the next request")
		}
	})
}
