// Package observe is what an operator sees of a running process: metrics,
// health, and the status page.
package observe

import (
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Metrics holds the numbers of a process and its pipelines. It is a
// [prometheus.Collector]: series are made when they are scraped, so counting
// costs an atomic addition, and the series of a pipeline that is gone are gone.
type Metrics struct {
	mu        sync.Mutex
	pipelines map[catalog.Key]*Pipeline
	unserved  map[catalog.Key]string // backend

	Instances     atomic.Int64 // live, in the group
	SessionUp     atomic.Bool  // the lease session stands
	ListenerUp    atomic.Bool
	CatalogUp     atomic.Bool // the last attempt to load the catalog succeeded
	Reloads       atomic.Int64
	ReloadErrors  atomic.Int64
	SessionsLost  atomic.Int64
	Notifications atomic.Int64

	build []string
}

// NewMetrics returns metrics for a binary of this name and version, and
// registers them with reg.
func NewMetrics(reg prometheus.Registerer, binary, version, goVersion string) (*Metrics, error) {
	m := &Metrics{pipelines: make(map[catalog.Key]*Pipeline), build: []string{binary, version, goVersion}}
	return m, reg.Register(m)
}

// Pipeline returns the numbers of a pipeline, the same ones for as long as it is
// not forgotten.
func (m *Metrics) Pipeline(key catalog.Key) *Pipeline {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pipelines[key]
	if p == nil {
		p = &Pipeline{latency: newHistogram(latencyBuckets), publish: newHistogram(durationBuckets), commit: newHistogram(durationBuckets), batch: newHistogram(batchBuckets)}
		p.unaccounted.Store(-1)
		m.pipelines[key] = p
	}
	return p
}

// SetHealth sets the gauge of a pipeline's health, if there is one.
func (m *Metrics) SetHealth(key catalog.Key, h int) {
	m.mu.Lock()
	p := m.pipelines[key]
	m.mu.Unlock()
	if p != nil {
		p.SetHealth(h)
	}
}

// Keep forgets the pipelines that exist says are no more.
func (m *Metrics) Keep(exists func(catalog.Key) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.pipelines, func(k catalog.Key, _ *Pipeline) bool { return !exists(k) })
}

// Unserved says which enabled pipelines no live instance can run, with the
// backend that each lacks.
func (m *Metrics) Unserved(backends map[catalog.Key]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unserved = backends
}

// Health of a pipeline as its gauge shows it.
const (
	HealthNone = iota // not this process's concern: no series
	HealthBad
	HealthGood
)

// Pipeline is one pipeline's numbers. Its methods are called once a batch from
// several goroutines and allocate nothing.
type Pipeline struct {
	received, receivedBytes   atomic.Int64
	published, publishedBytes atomic.Int64
	skipped                   atomic.Int64
	deadLettered, parked      atomic.Int64
	publishErrors             atomic.Int64
	sourceErrors              atomic.Int64
	restarts                  atomic.Int64
	polls, emptyPolls         atomic.Int64
	inFlight                  atomic.Int64
	delivering                atomic.Int64 // Unix nanoseconds of the oldest message in the sink's hand; 0 when none
	lastCommit                atomic.Int64 // Unix nanoseconds; 0 when none
	latency, publish          *histogram
	commit, batch             *histogram

	owned       atomic.Bool
	health      atomic.Int32
	epoch       atomic.Int64
	lagRows     atomic.Int64 // -1 when unknown
	lagSeconds  atomic.Uint64
	hasLag      atomic.Bool
	dead        atomic.Int64 // letters stored now
	waiting     atomic.Int64 // letters parked now
	unaccounted atomic.Int64 // -1 when nobody looked
	overtaken   atomic.Int64
}

// Received counts what a source gave.
func (p *Pipeline) Received(messages, bytes int) {
	p.received.Add(int64(messages))
	p.receivedBytes.Add(int64(bytes))
}

// Polled counts a look at an outbox table.
func (p *Pipeline) Polled(found bool) {
	if found {
		p.polls.Add(1)
	} else {
		p.emptyPolls.Add(1)
	}
}

// Published counts what a sink confirmed.
func (p *Pipeline) Published(messages, bytes int, took time.Duration) {
	p.published.Add(int64(messages))
	p.publishedBytes.Add(int64(bytes))
	p.publish.observe(took.Seconds())
	p.batch.observe(float64(messages))
}

// Latency counts the time from the creation of a row to now.
func (p *Pipeline) Latency(created time.Time) {
	p.latency.observe(max(0, time.Since(created).Seconds()))
}

// Skipped counts messages that the far end already had.
func (p *Pipeline) Skipped(messages int) { p.skipped.Add(int64(messages)) }

// DeadLettered counts messages that were stored as dead.
func (p *Pipeline) DeadLettered(messages int) { p.deadLettered.Add(int64(messages)) }

// Parked counts messages that were stored behind a dead one.
func (p *Pipeline) Parked(messages int) { p.parked.Add(int64(messages)) }

// PublishFailed counts a failed publish.
func (p *Pipeline) PublishFailed() { p.publishErrors.Add(1) }

// SourceFailed counts a failed receive or acknowledgement.
func (p *Pipeline) SourceFailed() { p.sourceErrors.Add(1) }

// Committed counts a checkpoint, or an acknowledgement to a broker.
func (p *Pipeline) Committed(took time.Duration) {
	p.lastCommit.Store(time.Now().UnixNano())
	p.commit.observe(took.Seconds())
}

// InFlight adds to what lies between source and sink.
func (p *Pipeline) InFlight(bytes int64) { p.inFlight.Add(bytes) }

// Delivering sets the time of the oldest message in the sink's hand; zero when there
// is none.
func (p *Pipeline) Delivering(oldest time.Time) {
	if oldest.IsZero() {
		p.delivering.Store(0)
	} else {
		p.delivering.Store(oldest.UnixNano())
	}
}

// lag is the age of the oldest message that is not delivered: one that the source
// has not given yet, or the sink has not confirmed.
func (p *Pipeline) lag() (seconds float64) {
	seconds = math.Float64frombits(p.lagSeconds.Load())
	if at := p.delivering.Load(); at != 0 {
		seconds = max(seconds, time.Since(time.Unix(0, at)).Seconds())
	}
	return seconds
}

// Restarted counts a run that ended in an error.
func (p *Pipeline) Restarted() { p.restarts.Add(1) }

// Own says that this process runs the pipeline under the lease's epoch.
func (p *Pipeline) Own(epoch int64) {
	p.epoch.Store(epoch)
	p.lastCommit.Store(0)
	p.owned.Store(true)
}

// Disown says that it does no longer. Its gauges disappear, its counters stay.
func (p *Pipeline) Disown() {
	p.owned.Store(false)
	p.hasLag.Store(false)
	p.inFlight.Store(0)
	p.unaccounted.Store(-1)
	p.overtaken.Store(0)
}

// SetHealth sets the gauge of the pipeline's health.
func (p *Pipeline) SetHealth(h int) { p.health.Store(int32(h)) } //nolint:gosec // one of three constants

// SetLag sets how far the source is behind; rows is -1 when unknown.
func (p *Pipeline) SetLag(rows int64, seconds float64) {
	p.lagRows.Store(rows)
	p.lagSeconds.Store(math.Float64bits(seconds))
	p.hasLag.Store(true)
}

// LagUnknown says that the lag could not be measured. Its gauges disappear until it
// is set again, rather than show how far the source was behind at some time before.
func (p *Pipeline) LagUnknown() { p.hasLag.Store(false) }

// SetLetters sets how many dead letters and parked messages are stored.
func (p *Pipeline) SetLetters(dead, parked int64) {
	p.dead.Store(dead)
	p.waiting.Store(parked)
}

// SetUnaccounted sets the rows that were committed and are neither delivered,
// dead, parked nor pending.
func (p *Pipeline) SetUnaccounted(rows int64) { p.unaccounted.Store(rows) }

// SetOvertaken sets the ids that were gone before they could be delivered.
func (p *Pipeline) SetOvertaken(ids int64) { p.overtaken.Store(ids) }

// Numbers are a pipeline's numbers at one moment, for the status page.
type Numbers struct {
	Received      int64    `json:"received"`
	Published     int64    `json:"published"`
	Skipped       int64    `json:"skipped"`
	PublishErrors int64    `json:"publish_errors"`
	SourceErrors  int64    `json:"source_errors"`
	Restarts      int64    `json:"restarts"`
	DeadLetters   int64    `json:"dead_letters"`
	Parked        int64    `json:"parked"`
	InFlightBytes int64    `json:"in_flight_bytes"`
	LagRows       *int64   `json:"lag_rows,omitempty"`
	LagSeconds    *float64 `json:"lag_seconds,omitempty"`
	CommitAge     *float64 `json:"checkpoint_age_seconds,omitempty"`
}

// Numbers reads the pipeline's numbers.
func (p *Pipeline) Numbers() Numbers {
	n := Numbers{
		Received: p.received.Load(), Published: p.published.Load(), Skipped: p.skipped.Load(),
		PublishErrors: p.publishErrors.Load(), SourceErrors: p.sourceErrors.Load(), Restarts: p.restarts.Load(),
		DeadLetters: p.dead.Load(), Parked: p.waiting.Load(), InFlightBytes: p.inFlight.Load(),
	}
	if p.hasLag.Load() {
		if rows := p.lagRows.Load(); rows >= 0 {
			n.LagRows = &rows
		}
		seconds := p.lag()
		n.LagSeconds = &seconds
	}
	if at := p.lastCommit.Load(); at != 0 {
		age := time.Since(time.Unix(0, at)).Seconds()
		n.CommitAge = &age
	}
	return n
}

const prefix = "pgtrickle_relay_"

var (
	byPipeline  = []string{"pipeline"}
	byDirection = []string{"pipeline", "direction"}
)

type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func describe(kind prometheus.ValueType, name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc(prefix+name, help, labels, nil), kind}
}

// Describe implements [prometheus.Collector]. Sending nothing makes the
// collector an unchecked one, which the set of its series, changing with the
// pipelines, makes it anyway.
func (m *Metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	pipelines := maps.Clone(m.pipelines)
	unserved := m.unserved
	m.mu.Unlock()
	c := collector{ch}
	keys := slices.SortedFunc(maps.Keys(pipelines), catalog.Key.Compare)
	c.process(m, pipelines)
	for _, k := range keys {
		c.counters(k, pipelines[k])
	}
	c.merged(keys, pipelines)
	for k, backend := range unserved {
		c.value(describe(prometheus.GaugeValue, "pipeline_unserved", "An enabled pipeline whose backend no live instance has.", "pipeline", "direction", "backend"),
			1, k.Name, string(k.Direction), backend)
	}
}

type collector struct{ ch chan<- prometheus.Metric }

func (c collector) value(m metric, v float64, labels ...string) {
	c.ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v, labels...)
}

func (c collector) gauge(name, help string, v float64) {
	c.value(describe(prometheus.GaugeValue, name, help), v)
}

func (c collector) counter(name, help string, v int64) {
	c.value(describe(prometheus.CounterValue, name, help), float64(v))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (c collector) process(m *Metrics, pipelines map[catalog.Key]*Pipeline) {
	owned := 0
	for _, p := range pipelines {
		if p.owned.Load() {
			owned++
		}
	}
	c.value(describe(prometheus.GaugeValue, "build_info", "Always 1; the labels say what runs.", "binary", "version", "goversion"), 1, m.build...)
	c.gauge("pipelines_owned", "Pipelines that this process runs.", float64(owned))
	c.gauge("instances", "Live processes of the group.", float64(m.Instances.Load()))
	c.gauge("session_up", "Whether the connection that holds the leases stands.", number(m.SessionUp.Load()))
	c.gauge("listener_up", "Whether the connection that listens for notifications stands.", number(m.ListenerUp.Load()))
	c.gauge("catalog_up", "Whether the last attempt to read the pipelines succeeded.", number(m.CatalogUp.Load()))
	c.counter("catalog_reloads_total", "Changes of the catalog that were taken up.", m.Reloads.Load())
	c.counter("catalog_errors_total", "Attempts to read the pipelines that failed.", m.ReloadErrors.Load())
	c.counter("sessions_lost_total", "Times that the connection that holds the leases was lost.", m.SessionsLost.Load())
	c.counter("notifications_total", "Notifications received.", m.Notifications.Load())
}

func (c collector) counters(k catalog.Key, p *Pipeline) {
	labels := []string{k.Name, string(k.Direction)}
	for _, m := range []struct {
		name, help string
		v          *atomic.Int64
	}{
		{"messages_published_total", "Messages that the sink confirmed.", &p.published},
		{"messages_consumed_total", "Messages that the source gave.", &p.received},
		{"published_bytes_total", "Bytes of the messages that the sink confirmed.", &p.publishedBytes},
		{"consumed_bytes_total", "Bytes of the messages that the source gave.", &p.receivedBytes},
		{"publish_errors_total", "Publishes that failed and were tried again, or dead-lettered.", &p.publishErrors},
		{"source_errors_total", "Receives and acknowledgements that failed.", &p.sourceErrors},
		{"dead_letters_total", "Messages that were stored as dead letters.", &p.deadLettered},
		{"parked_total", "Messages that were stored behind a dead letter of their key.", &p.parked},
		{"pipeline_restarts_total", "Runs of the pipeline that ended in an error.", &p.restarts},
	} {
		c.value(describe(prometheus.CounterValue, m.name, m.help, byDirection...), float64(m.v.Load()), labels...)
	}
	if k.Direction == relay.Forward {
		polls := describe(prometheus.CounterValue, "polls_total", "Looks at the outbox table that found rows, or none.", "pipeline", "direction", "found")
		c.value(polls, float64(p.polls.Load()), k.Name, string(k.Direction), "rows")
		c.value(polls, float64(p.emptyPolls.Load()), k.Name, string(k.Direction), "nothing")
	}
	c.histogram("publish_duration_seconds", "Time a publish took.", byDirection, labels, p.publish)
	c.histogram("publish_batch_messages", "Messages of a publish.", byDirection, labels, p.batch)
	c.histogram("commit_duration_seconds", "Time a checkpoint or acknowledgement took.", byDirection, labels, p.commit)
	if !p.owned.Load() {
		return
	}
	gauge := func(name, help string, v float64) {
		c.value(describe(prometheus.GaugeValue, name, help, byDirection...), v, labels...)
	}
	gauge("lease_epoch", "Epoch of the lease under which this process runs the pipeline.", float64(p.epoch.Load()))
	gauge("in_flight_bytes", "Bytes between source and sink.", float64(p.inFlight.Load()))
	gauge("dead_letters", "Dead letters stored now.", float64(p.dead.Load()))
	gauge("overtaken_ids", "Outbox ids that were gone before they could be delivered, or that were rolled back, over the checkpoint's life.", float64(p.overtaken.Load()))
	gauge("parked_messages", "Messages parked behind a dead letter now.", float64(p.waiting.Load()))
	if at := p.lastCommit.Load(); at != 0 {
		gauge("checkpoint_age_seconds", "Time since the last checkpoint or acknowledgement.", time.Since(time.Unix(0, at)).Seconds())
	}
}

// merged sends the series that have no direction. Where a forward and a reverse
// pipeline bear the same name they show the sum, or the worse of the two.
func (c collector) merged(keys []catalog.Key, pipelines map[catalog.Key]*Pipeline) {
	for i := 0; i < len(keys); {
		j := i + 1
		for j < len(keys) && keys[j].Name == keys[i].Name {
			j++
		}
		name, skipped, health := keys[i].Name, int64(0), int32(math.MaxInt32)
		lagRows, lagSeconds, hasLag := int64(-1), 0.0, false
		unaccounted := int64(-1)
		latency := newHistogram(latencyBuckets)
		for _, k := range keys[i:j] {
			p := pipelines[k]
			skipped += p.skipped.Load()
			if h := p.health.Load(); h != HealthNone {
				health = min(health, h)
			}
			if p.hasLag.Load() {
				hasLag = true
				lagRows = max(lagRows, p.lagRows.Load())
				lagSeconds = max(lagSeconds, p.lag())
			}
			unaccounted = max(unaccounted, p.unaccounted.Load())
			latency.add(p.latency)
		}
		c.value(describe(prometheus.CounterValue, "dedup_skipped_total", "Messages that the far end already had.", byPipeline...), float64(skipped), name)
		c.histogram("delivery_latency_seconds", "Time from the creation of a row to its confirmation by the far end.", byPipeline, []string{name}, latency)
		gauge := func(metricName, help string, v float64) {
			c.value(describe(prometheus.GaugeValue, metricName, help, byPipeline...), v, name)
		}
		if health != math.MaxInt32 {
			gauge("pipeline_healthy", "1 when the pipeline runs and is not failing, nor waits long for its lock.", number(health == HealthGood))
		}
		if hasLag {
			gauge("lag_seconds", "Age of the oldest message that is not delivered.", lagSeconds)
			if lagRows >= 0 {
				gauge("lag_rows", "Messages not yet received.", float64(lagRows))
			}
		}
		if unaccounted >= 0 {
			gauge("unaccounted_rows", "Committed rows that are neither delivered, dead, parked nor pending. Must be 0.", float64(unaccounted))
		}
		i = j
	}
}

func (c collector) histogram(name, help string, names, labels []string, h *histogram) {
	count, sum, buckets := h.read()
	c.ch <- prometheus.MustNewConstHistogram(prometheus.NewDesc(prefix+name, help, names, nil), count, sum, buckets, labels...)
}
