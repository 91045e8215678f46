package backfill

import "time"

const (
	// firstRows may be in flight before the speed of the far end is known.
	firstRows = 256
	minRows   = 64
	maxRows   = 1 << 14
	// chunkTime is how long the rows of a chunk may take to be delivered, and inFlight how
	// long all that are not settled may.
	chunkTime = 250 * time.Millisecond
	inFlight  = 2 * chunkTime
	// minTime is the shortest time that a speed is measured over: checkpoints come in
	// bursts.
	minTime = 200 * time.Millisecond
)

// Pace decides when the next chunk is read, and how many rows it may have. Rows are
// counted from the start of the run.
type Pace struct {
	rate    int     // rows a second at most; 0 = no limit
	speed   float64 // rows a second that are settled; 0 = unknown
	fitting int     // rows that fit into memory
	read    int64
	settled int64
	at      time.Time // when settled was measured
	due     time.Time // of the next chunk, by the rate
}

// NewPace returns a pace of at most rate rows a second, behind rows that are settled; 0 is
// no limit.
func NewPace(rate int, settled int64) Pace {
	return Pace{rate: rate, fitting: maxRows, read: settled, settled: settled}
}

// Settled records how many rows are settled.
func (p *Pace) Settled(now time.Time, rows int64) {
	if took := now.Sub(p.at); rows > p.settled && took >= minTime {
		p.speed = float64(rows-p.settled) / took.Seconds()
		p.settled, p.at = rows, now
	}
}

// Due reports whether to read a chunk now.
func (p *Pace) Due(now time.Time) bool {
	if now.Before(p.due) {
		return false
	}
	if p.read == p.settled { // no time is measured while nothing is in flight
		return true
	}
	return p.read-p.settled+int64(p.Rows()) <= max(firstRows, int64(p.speed*inFlight.Seconds()))
}

// Rows returns the number of rows of the next chunk.
func (p *Pace) Rows() int {
	n := max(minRows, int(p.speed*chunkTime.Seconds()))
	if p.rate > 0 {
		n = min(n, max(p.rate/4, 1))
	}
	return max(min(n, p.fitting, maxRows), 1)
}

// Read records a chunk that was read, and how many rows like it fit into memory.
func (p *Pace) Read(now time.Time, rows, fitting int) {
	if p.read == p.settled {
		p.at = now
	}
	p.read += int64(rows)
	p.fitting = fitting
	if p.rate > 0 {
		p.due = now.Add(time.Duration(rows) * time.Second / time.Duration(p.rate))
	}
}
