package backfill

import "time"

const (
	firstRows = 64
	maxRows   = 1 << 16
	// chunkTime is how long the rows of a chunk may take to be delivered.
	chunkTime = 250 * time.Millisecond
	// maxInFlight bounds the chunks that are not settled.
	maxInFlight = 2
)

// Pace decides when the next chunk is read, and how many rows it may have.
type Pace struct {
	rate  int // rows a second; 0 = no limit
	rows  int // of the next chunk
	began time.Time
	due   time.Time
}

// NewPace returns a pace of at most rate rows a second; 0 is no limit.
func NewPace(rate int) Pace { return Pace{rate: rate, rows: firstRows} }

// Due reports whether to read a chunk now. unsettled is the number of chunks in flight.
func (p *Pace) Due(now time.Time, unsettled int) bool {
	return unsettled < maxInFlight && !now.Before(p.due)
}

// Wait returns how long to wait for the next chunk.
func (p *Pace) Wait(now time.Time) time.Duration { return p.due.Sub(now) }

// Rows returns the number of rows of the next chunk.
func (p *Pace) Rows() int {
	if p.rate > 0 {
		return min(p.rows, max(p.rate/4, 1))
	}
	return p.rows
}

// Read records a chunk that was read. Chunks follow one another as the far end takes
// them, so the time between two is what the rows of one take.
func (p *Pace) Read(now time.Time, rows int) {
	took := now.Sub(p.began)
	switch {
	case p.began.IsZero():
	case took > chunkTime:
		p.rows = max(int(int64(rows)*int64(chunkTime)/int64(took)), firstRows)
	case rows >= p.rows:
		p.rows = min(2*p.rows, maxRows)
	}
	p.began = now
	if p.rate > 0 {
		p.due = now.Add(time.Duration(rows) * time.Second / time.Duration(p.rate))
	}
}
