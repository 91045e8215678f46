package observe

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// namespace is the first part of every metric's name.
const namespace = "pgtrickle_relay"

// series describes a metric that every pipeline has.
type series struct {
	name    string
	help    string
	buckets []float64 // of histograms
	found   string    // value of the label of that name, of forward pipelines; "" if there is no such label
}

// desc returns the description for Prometheus.
func (s *series) desc() *prometheus.Desc {
	labels := []string{"pipeline", "direction"}
	if s.found != "" {
		labels = append(labels, "found")
	}
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", s.name), s.help, labels, nil)
}

// Counters of a pipeline.
const (
	received = iota
	receivedBytes
	published
	publishedBytes
	skipped
	unexpected
	conflicts
	losses
	filtered
	deadLettered
	expired
	parked
	publishErrors
	sourceErrors
	restarts
	polledRows
	polledNothing
	numCounters
)

var counterSeries = [numCounters]series{
	received:       {name: "messages_consumed_total", help: "Messages received from the source."},
	receivedBytes:  {name: "consumed_bytes_total", help: "Bytes of the messages received from the source."},
	published:      {name: "messages_published_total", help: "Messages that the sink confirmed."},
	publishedBytes: {name: "published_bytes_total", help: "Bytes of the messages that the sink confirmed."},
	skipped:        {name: "dedup_skipped_total", help: "Messages that the receiver had before."},
	unexpected:     {name: "unexpected_duplicates_total", help: "Messages that the far end had already, and not after a crash or a retry."},
	conflicts:      {name: "id_conflicts_total", help: "Messages that an inbox took for copies of another event with the same id."},
	losses:         {name: "source_losses_total", help: "Reports of messages that the far end lost before the pipeline had them."},
	filtered:       {name: "filtered_total", help: "Messages that the pipeline's filter dropped."},
	deadLettered:   {name: "dead_letters_total", help: "Messages stored as dead letters."},
	expired:        {name: "dead_letters_expired_total", help: "Dead letters deleted for their age."},
	parked:         {name: "parked_total", help: "Messages parked behind a dead letter of their key."},
	publishErrors:  {name: "publish_errors_total", help: "Failed publishes. Each was retried or ended in dead letters."},
	sourceErrors:   {name: "source_errors_total", help: "Receives and acknowledgements that failed."},
	restarts:       {name: "pipeline_restarts_total", help: "Runs of the pipeline that ended in an error."},
	polledRows:     {name: "polls_total", help: "Reads of the outbox table that found rows, or nothing.", found: "rows"},
	polledNothing:  {name: "polls_total", help: "Reads of the outbox table that found rows, or nothing.", found: "nothing"},
}

// Histograms of a pipeline.
const (
	latency = iota
	publishTime
	commitTime
	batchSize
	numHistograms
)

var histogramSeries = [numHistograms]series{
	latency: {
		name: "delivery_latency_seconds", buckets: latencyBuckets,
		help: "Time from the creation of a row to its confirmation by the receiver.",
	},
	publishTime: {name: "publish_duration_seconds", help: "Duration of a publish.", buckets: durationBuckets},
	commitTime:  {name: "commit_duration_seconds", help: "Duration of a checkpoint or an acknowledgement.", buckets: durationBuckets},
	batchSize:   {name: "publish_batch_messages", help: "Messages of a publish.", buckets: batchBuckets},
}

var (
	latencyBuckets  = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 3600}
	durationBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	batchBuckets    = []float64{1, 2, 5, 10, 50, 100, 500, 1000, 5000, 10000}
)

// Gauges of a pipeline.
const (
	healthy = iota
	lagSeconds
	lagRows
	unaccounted
	leaseEpoch
	inFlightBytes
	deadLetters
	overtaken
	parkedMessages
	checkpointAge
	snapshotRows
	snapshotTotal
	snapshotLeft
	numGauges
)

var gaugeSeries = [numGauges]series{
	healthy:        {name: "pipeline_healthy", help: "1 if the pipeline runs without errors, or waits for its lock only briefly."},
	lagSeconds:     {name: "lag_seconds", help: "Age of the oldest message that is not delivered."},
	lagRows:        {name: "lag_rows", help: "Messages not yet received."},
	unaccounted:    {name: "unaccounted_rows", help: "Committed rows that are neither delivered, dead, parked nor pending. Must be 0."},
	leaseEpoch:     {name: "lease_epoch", help: "Epoch of the lease under which this process runs the pipeline."},
	inFlightBytes:  {name: "in_flight_bytes", help: "Bytes between source and sink."},
	deadLetters:    {name: "dead_letters", help: "Dead letters stored now."},
	overtaken:      {name: "overtaken_ids", help: "Outbox ids that disappeared before delivery or were rolled back."},
	parkedMessages: {name: "parked_messages", help: "Messages parked behind a dead letter now."},
	snapshotRows:   {name: "snapshot_rows", help: "Rows of the captured table that are delivered of a snapshot. Absent when there is none."},
	snapshotTotal:  {name: "snapshot_total_rows", help: "Rows of the captured table as the server estimates them, 0 if it does not."},
	snapshotLeft:   {name: "snapshot_left_seconds", help: "Time that the rest of a snapshot takes at its present speed, 0 if unknown."},
	checkpointAge:  {name: "checkpoint_age_seconds", help: "Time since the last checkpoint or acknowledgement."},
}

// Metrics holds the metrics of a process and its pipelines. It is a
// [prometheus.Collector]. A pipeline keeps plain numbers, which become series when they
// are collected. With the client's own counters a thousand pipelines took 20 MB.
type Metrics struct {
	Instances     atomic.Int64 // live, in the group
	SessionUp     atomic.Bool  // of the leases
	ListenerUp    atomic.Bool
	CatalogUp     atomic.Bool // the last attempt to load the catalog succeeded
	Reloads       atomic.Int64
	ReloadErrors  atomic.Int64
	SessionsLost  atomic.Int64
	Notifications atomic.Int64

	others        []prometheus.Collector // every metric but those of pipelines
	counters      [numCounters]*prometheus.Desc
	histograms    [numHistograms]*prometheus.Desc
	gauges        [numGauges]*prometheus.Desc
	unservedGauge *prometheus.GaugeVec
	captureGauge  *prometheus.GaugeVec

	mu        sync.Mutex // guards pipelines and unserved, and is held while metrics are collected
	pipelines map[catalog.Key]*Pipeline
	unserved  map[catalog.Key]string // backend
}

// NewMetrics returns metrics for a binary of this name and version, and
// registers them with reg.
func NewMetrics(reg prometheus.Registerer, binary, version, goVersion string) (*Metrics, error) {
	m := &Metrics{pipelines: make(map[catalog.Key]*Pipeline)}
	m.addProcess(prometheus.Labels{"binary": binary, "version": version, "goversion": goVersion})

	for i := range counterSeries {
		m.counters[i] = counterSeries[i].desc()
	}
	for i := range histogramSeries {
		m.histograms[i] = histogramSeries[i].desc()
	}
	for i := range gaugeSeries {
		m.gauges[i] = gaugeSeries[i].desc()
	}
	m.unservedGauge = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: namespace, Name: "pipeline_unserved", Help: "An enabled pipeline whose backend no live instance has.",
	}, []string{"pipeline", "direction", "backend"})
	m.captureGauge = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: namespace, Name: "capture_problems", Help: "Reasons why changes of an outbox's table are not recorded as they should be.",
	}, []string{"outbox"})
	m.others = append(m.others, m.unservedGauge, m.captureGauge)

	return m, reg.Register(m)
}

// SetCaptureProblems replaces the number of problems of each outbox that has any.
func (m *Metrics) SetCaptureProblems(n map[string]int) {
	m.mu.Lock()
	defer m.mu.Unlock()

	m.captureGauge.Reset()
	for outbox, problems := range n {
		m.captureGauge.WithLabelValues(outbox).Set(float64(problems))
	}
}

// addProcess adds the metrics that have no pipeline.
func (m *Metrics) addProcess(build prometheus.Labels) {
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) {
		m.others = append(m.others, prometheus.NewGaugeFunc(
			prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help, ConstLabels: labels}, value))
	}
	counter := func(name, help string, value *atomic.Int64) {
		m.others = append(m.others, prometheus.NewCounterFunc(
			prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, func() float64 { return float64(value.Load()) }))
	}

	gauge("build_info", "Always 1; the labels describe the binary.", build, func() float64 { return 1 })
	gauge("pipelines_owned", "Pipelines that this process runs.", nil, m.owned)
	gauge("instances", "Live processes of the group.", nil, func() float64 { return float64(m.Instances.Load()) })
	gauge("session_up", "Whether the connection that holds the leases is up.", nil, func() float64 { return number(m.SessionUp.Load()) })
	gauge("listener_up", "Whether the connection for notifications is up.", nil, func() float64 { return number(m.ListenerUp.Load()) })
	gauge("catalog_up", "Whether the last attempt to read the pipelines succeeded.", nil,
		func() float64 { return number(m.CatalogUp.Load()) })

	counter("catalog_reloads_total", "Changes of the catalog that were applied.", &m.Reloads)
	counter("catalog_errors_total", "Failed attempts to read the pipelines.", &m.ReloadErrors)
	counter("sessions_lost_total", "Losses of the connection that holds the leases.", &m.SessionsLost)
	counter("notifications_total", "Notifications received.", &m.Notifications)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Pipeline returns the metrics of a pipeline. It returns the same ones until Keep
// drops them.
func (m *Metrics) Pipeline(key catalog.Key) *Pipeline {
	m.mu.Lock()
	defer m.mu.Unlock()

	p := m.pipelines[key]
	if p == nil {
		p = new(Pipeline)
		p.unaccounted.Store(unknown)
		m.pipelines[key] = p
	}
	return p
}

// SetHealth sets the health of a pipeline that has metrics.
func (m *Metrics) SetHealth(key catalog.Key, h int) {
	m.mu.Lock()
	p := m.pipelines[key]
	m.mu.Unlock()

	if p != nil {
		p.SetHealth(h)
	}
}

// Keep drops every pipeline for which exists returns false.
func (m *Metrics) Keep(exists func(catalog.Key) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()

	maps.DeleteFunc(m.pipelines, func(key catalog.Key, _ *Pipeline) bool { return !exists(key) })
}

// Unserved sets the enabled pipelines whose backend no live instance has, each
// with that backend.
func (m *Metrics) Unserved(backends map[catalog.Key]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unserved = maps.Clone(backends)
}

func (m *Metrics) owned() (n float64) {
	for _, p := range m.pipelines { // Collect holds the lock
		n += number(p.owned.Load())
	}
	return n
}

// Describe implements [prometheus.Collector].
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, descs := range [][]*prometheus.Desc{m.counters[:], m.histograms[:], m.gauges[:]} {
		for _, d := range descs {
			ch <- d
		}
	}
	for _, c := range m.others {
		c.Describe(ch)
	}
}

// Collect implements [prometheus.Collector]. A pipeline that runs elsewhere has no
// gauges. A value that is not known and a histogram of nothing have no series.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()

	for key, p := range m.pipelines {
		m.collectPipeline(key, p, ch)
	}
	m.unservedGauge.Reset()
	for key, backend := range m.unserved {
		m.unservedGauge.WithLabelValues(key.Name, string(key.Direction), backend).Set(1)
	}
	for _, c := range m.others {
		c.Collect(ch)
	}
}

func (m *Metrics) collectPipeline(key catalog.Key, p *Pipeline, ch chan<- prometheus.Metric) {
	direction, name := labelled("direction", string(key.Direction)), labelled("pipeline", key.Name)
	labels := []*dto.LabelPair{direction, name} // sorted, as Prometheus wants them
	for i := range p.counters {
		of := labels
		if found := counterSeries[i].found; found != "" {
			if key.Direction != relay.Forward {
				continue
			}
			of = []*dto.LabelPair{direction, labelled("found", found), name}
		}
		ch <- &sample{m.counters[i], of, dto.Metric{Counter: &dto.Counter{Value: new(float64(p.counters[i].Load()))}}}
	}
	for i := range p.histograms {
		if h := p.histograms[i].Load(); h != nil {
			s := &sample{desc: m.histograms[i], labels: labels}
			_ = (*h).Write(&s.value) // it never fails
			ch <- s
		}
	}
	p.readGauges(func(gauge int, v float64) {
		ch <- &sample{m.gauges[gauge], labels, dto.Metric{Gauge: &dto.Gauge{Value: &v}}}
	})
}

// sample is one series at one moment.
type sample struct {
	desc   *prometheus.Desc
	labels []*dto.LabelPair // shared with other series
	value  dto.Metric
}

func labelled(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }

// Desc implements [prometheus.Metric].
func (s *sample) Desc() *prometheus.Desc { return s.desc }

// Write implements [prometheus.Metric].
func (s *sample) Write(out *dto.Metric) error {
	out.Label, out.Counter, out.Gauge, out.Histogram = s.labels, s.value.Counter, s.value.Gauge, s.value.Histogram
	return nil
}
