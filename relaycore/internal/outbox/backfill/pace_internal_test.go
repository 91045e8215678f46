package backfill

import (
	"testing"
	"time"
)

// TestPace reads chunks for far ends of several speeds, with a checkpoint every 50 ms. All
// rows in flight take half a second at most, and a fast far end does not wait.
func TestPace(t *testing.T) {
	for _, tc := range []struct {
		speed, rate int // rows a second
		want        int // in ten seconds, at least
	}{
		{speed: 200, want: 1800},
		{speed: 2_000, want: 18_000},
		{speed: 300_000, want: 2_300_000},
		{speed: 300_000, rate: 1000, want: 9000},
	} {
		p, now := NewPace(tc.rate, 0), time.Unix(0, 0)
		read, delivered, most := 0, 0.0, 0
		for ms := range 10_000 {
			now = now.Add(time.Millisecond)
			delivered = min(delivered+float64(tc.speed)/1000, float64(read))
			if ms%50 == 0 {
				p.Settled(now, int64(delivered))
			}
			if p.Due(now) {
				n := p.Rows()
				read += n
				p.Read(now, n, maxRows)
			}
			if ms > 1000 {
				most = max(most, read-int(delivered))
			}
		}
		if int(delivered) < tc.want {
			t.Errorf("%+v: %d rows were delivered", tc, int(delivered))
		}
		if limit := max(firstRows, tc.speed*6/10); most > limit {
			t.Errorf("%+v: up to %d rows were in flight, want at most %d", tc, most, limit)
		}
		if tc.rate > 0 && read > 11*tc.rate {
			t.Errorf("%+v: %d rows were read", tc, read)
		}
	}
}
