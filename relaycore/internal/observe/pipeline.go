package observe

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Health of a pipeline as its gauge shows it.
const (
	HealthNone = iota // the pipeline does not run here: no series
	HealthBad
	HealthGood
)

// unknown is a number of rows that was not determined.
const unknown = -1

// Pipeline holds the metrics of one pipeline. Its methods are called once a batch
// from several goroutines, and allocate nothing on the way of a message.
type Pipeline struct {
	counters   [numCounters]atomic.Int64
	histograms [numHistograms]atomic.Pointer[prometheus.Histogram] // nil: observed nothing

	inFlight    atomic.Int64
	delivering  atomic.Int64 // creation of the oldest message that the sink has, in Unix nanoseconds; 0: none
	lastCommit  atomic.Int64 // Unix nanoseconds; 0: none
	owned       atomic.Bool
	health      atomic.Int32
	epoch       atomic.Int64
	lag         atomic.Pointer[lag]      // nil: unknown
	dead        atomic.Int64             // dead letters stored now
	waiting     atomic.Int64             // messages parked now
	snapshot    atomic.Pointer[Snapshot] // nil: none is read
	unaccounted atomic.Int64
	overtaken   atomic.Int64
	refused     atomic.Int64 // dead letters since the last delivery
	refusedAt   atomic.Int64 // Unix nanoseconds of the last dead letter
	deliveredAt atomic.Int64 // Unix nanoseconds of the last delivery
}

// lag is how far the source is behind.
type lag struct {
	rows    int64
	seconds float64
}

// Snapshot is how far the rows are that a captured table had before. 0 is unknown, but
// for Rows.
type Snapshot struct {
	Rows  int64   `json:"rows"`
	Total int64   `json:"total,omitempty"`
	Left  float64 `json:"left_seconds,omitempty"`
}

// Received counts messages that a source returned.
func (p *Pipeline) Received(messages, bytes int) {
	p.counters[received].Add(int64(messages))
	p.counters[receivedBytes].Add(int64(bytes))
}

// Polled counts a read of an outbox table. Only forward pipelines have one.
func (p *Pipeline) Polled(found bool) {
	if found {
		p.counters[polledRows].Add(1)
	} else {
		p.counters[polledNothing].Add(1)
	}
}

// Published counts messages that a sink confirmed.
func (p *Pipeline) Published(messages, bytes int, took time.Duration) {
	p.refused.Store(0)
	p.deliveredAt.Store(time.Now().UnixNano())
	p.counters[published].Add(int64(messages))
	p.counters[publishedBytes].Add(int64(bytes))
	p.observe(publishTime, took.Seconds())
	p.observe(batchSize, float64(messages))
}

// Latency counts the time from the creation of a row to now.
func (p *Pipeline) Latency(created time.Time) {
	p.observe(latency, max(0, time.Since(created).Seconds()))
}

// Skipped counts messages that the receiver had before.
func (p *Pipeline) Skipped(messages int) { p.counters[skipped].Add(int64(messages)) }

// Unexpected counts messages that the receiver had before, and should not have had.
func (p *Pipeline) Unexpected(messages int) { p.counters[unexpected].Add(int64(messages)) }

// Conflicts counts messages that were taken for copies of another event.
func (p *Pipeline) Conflicts(messages int) { p.counters[conflicts].Add(int64(messages)) }

// Lost counts a report of messages that the far end lost.
func (p *Pipeline) Lost() { p.counters[losses].Add(1) }

// Filtered counts messages that the pipeline's filter drops.
func (p *Pipeline) Filtered(messages int) { p.counters[filtered].Add(int64(messages)) }

// DeadLettered counts messages stored as dead letters.
func (p *Pipeline) DeadLettered(messages int) {
	p.counters[deadLettered].Add(int64(messages))
	p.refused.Add(int64(messages))
	p.refusedAt.Store(time.Now().UnixNano())
}

// Refused returns how many messages became dead letters since the last delivery, if
// they are the last hundred messages or all of the last minute. Otherwise it returns 0.
func (p *Pipeline) Refused() int64 {
	minuteAgo := time.Now().Add(-time.Minute).UnixNano()
	n := p.refused.Load()
	if n >= maxRefused || p.refusedAt.Load() > minuteAgo && p.deliveredAt.Load() < minuteAgo {
		return n
	}
	return 0
}

// maxRefused is how many dead letters without a delivery make a pipeline failing.
const maxRefused = 100

// Expired counts dead letters deleted for their age.
func (p *Pipeline) Expired(messages int) { p.counters[expired].Add(int64(messages)) }

// Parked counts messages parked behind a dead letter.
func (p *Pipeline) Parked(messages int) { p.counters[parked].Add(int64(messages)) }

// PublishFailed counts a failed publish.
func (p *Pipeline) PublishFailed() { p.counters[publishErrors].Add(1) }

// SourceFailed counts a failed receive or acknowledgement.
func (p *Pipeline) SourceFailed() { p.counters[sourceErrors].Add(1) }

// Restarted counts a run that ended in an error.
func (p *Pipeline) Restarted() { p.counters[restarts].Add(1) }

// Committed counts a checkpoint, or an acknowledgement to a broker.
func (p *Pipeline) Committed(took time.Duration) {
	p.lastCommit.Store(time.Now().UnixNano())
	p.observe(commitTime, took.Seconds())
}

// InFlight adds to the bytes between source and sink.
func (p *Pipeline) InFlight(bytes int64) { p.inFlight.Add(bytes) }

// Delivering sets the creation time of the oldest message that the sink has not
// confirmed. A zero time means that there is none.
func (p *Pipeline) Delivering(oldest time.Time) {
	if oldest.IsZero() {
		p.delivering.Store(0)
	} else {
		p.delivering.Store(oldest.UnixNano())
	}
}

// Own records that this process runs the pipeline, and the epoch of its lease.
func (p *Pipeline) Own(epoch int64) {
	p.epoch.Store(epoch)
	p.refused.Store(0)
	p.lastCommit.Store(0)
	p.owned.Store(true)
}

// Disown records that this process no longer runs the pipeline. Its gauges
// disappear; its counters stay.
func (p *Pipeline) Disown() {
	p.owned.Store(false)
	p.lag.Store(nil)
	p.inFlight.Store(0)
	p.unaccounted.Store(unknown)
	p.overtaken.Store(0)
	p.snapshot.Store(nil)
}

// SetHealth sets the gauge of the pipeline's health.
func (p *Pipeline) SetHealth(h int) { p.health.Store(int32(h)) }

// SetLag sets how far the source is behind. A negative number of rows is unknown.
func (p *Pipeline) SetLag(rows int64, seconds float64) { p.lag.Store(&lag{rows, seconds}) }

// LagUnknown records that the lag could not be measured. Its gauges disappear until
// the next SetLag, so that they never show an old value.
func (p *Pipeline) LagUnknown() { p.lag.Store(nil) }

// SetDeadLetters sets how many dead letters and parked messages are stored.
func (p *Pipeline) SetDeadLetters(dead, parked int64) {
	p.dead.Store(dead)
	if dead == 0 {
		p.refused.Store(0)
	}
	p.waiting.Store(parked)
}

// SetUnaccounted sets the number of committed rows that are neither delivered,
// dead, parked nor pending.
func (p *Pipeline) SetUnaccounted(rows int64) { p.unaccounted.Store(rows) }

// SetSnapshot sets how far the rows of the captured table are; nil means that none are
// read.
func (p *Pipeline) SetSnapshot(s *Snapshot) { p.snapshot.Store(s) }

// SetOvertaken sets the number of ids that disappeared before delivery.
func (p *Pipeline) SetOvertaken(ids int64) { p.overtaken.Store(ids) }

// readGauges calls set for each gauge that the pipeline has now.
func (p *Pipeline) readGauges(set func(gauge int, v float64)) {
	if h := p.health.Load(); h != HealthNone {
		set(healthy, number(h == HealthGood && p.Refused() == 0))
	}
	if l := p.currentLag(); l != nil {
		set(lagSeconds, l.seconds)
		if l.rows >= 0 {
			set(lagRows, float64(l.rows))
		}
	}
	if n := p.unaccounted.Load(); n != unknown {
		set(unaccounted, float64(n))
	}
	if !p.owned.Load() {
		return
	}

	if s := p.snapshot.Load(); s != nil {
		set(snapshotRows, float64(s.Rows))
		set(snapshotTotal, float64(s.Total))
		set(snapshotLeft, s.Left)
	}
	set(leaseEpoch, float64(p.epoch.Load()))
	set(inFlightBytes, float64(p.inFlight.Load()))
	set(deadLetters, float64(p.dead.Load()))
	set(parkedMessages, float64(p.waiting.Load()))
	set(overtaken, float64(p.overtaken.Load()))
	if age := age(&p.lastCommit); age != nil {
		set(checkpointAge, *age)
	}
}

// currentLag includes the messages that the sink has not confirmed. It returns nil
// if the lag of the source is unknown.
func (p *Pipeline) currentLag() *lag {
	l := p.lag.Load()
	if l == nil {
		return nil
	}
	if oldest := age(&p.delivering); oldest != nil {
		return &lag{l.rows, max(l.seconds, *oldest)}
	}
	return l
}

// age returns the seconds since a time, or nil if there is none.
func age(at *atomic.Int64) *float64 {
	nanoseconds := at.Load()
	if nanoseconds == 0 {
		return nil
	}
	return new(time.Since(time.Unix(0, nanoseconds)).Seconds())
}

// Numbers are the numbers of a pipeline at one moment, for the status page.
type Numbers struct {
	Received      int64    `json:"received"`
	Published     int64    `json:"published"`
	Skipped       int64    `json:"skipped"`
	Filtered      int64    `json:"filtered"`
	PublishErrors int64    `json:"publish_errors"`
	SourceErrors  int64    `json:"source_errors"`
	Restarts      int64    `json:"restarts"`
	DeadLetters   int64    `json:"dead_letters"`
	Parked        int64    `json:"parked"`
	InFlightBytes int64    `json:"in_flight_bytes"`
	LagRows       *int64   `json:"lag_rows,omitempty"`
	LagSeconds    *float64 `json:"lag_seconds,omitempty"`
	CommitAge     *float64 `json:"checkpoint_age_seconds,omitempty"`

	Snapshot *Snapshot `json:"snapshot,omitempty"`
}

// Numbers reads the numbers of the pipeline.
func (p *Pipeline) Numbers() Numbers {
	n := Numbers{
		Received: p.count(received), Published: p.count(published), Skipped: p.count(skipped), Filtered: p.count(filtered),
		PublishErrors: p.count(publishErrors), SourceErrors: p.count(sourceErrors), Restarts: p.count(restarts),
		DeadLetters: p.dead.Load(), Parked: p.waiting.Load(), InFlightBytes: p.inFlight.Load(), CommitAge: age(&p.lastCommit),
		Snapshot: p.snapshot.Load(),
	}
	if l := p.currentLag(); l != nil {
		n.LagSeconds = &l.seconds
		if l.rows >= 0 {
			n.LagRows = &l.rows
		}
	}
	return n
}

func (p *Pipeline) count(counter int) int64 { return p.counters[counter].Load() }

// observe adds a value to a histogram. The first makes the histogram, which takes a
// kilobyte or two.
func (p *Pipeline) observe(histogram int, v float64) {
	h := p.histograms[histogram].Load()
	if h == nil {
		d := &histogramSeries[histogram]
		made := prometheus.NewHistogram(prometheus.HistogramOpts{Name: d.name, Help: d.help, Buckets: d.buckets})
		p.histograms[histogram].CompareAndSwap(nil, &made) // unless another goroutine was first
		h = p.histograms[histogram].Load()
	}
	(*h).Observe(v)
}
