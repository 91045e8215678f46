package observe

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func scrape(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	return request(h, path, "127.0.0.1:9", "localhost:9090", nil)
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	m, err := NewMetrics(reg, "relay-nats", "1.2.3", "go1")
	if err != nil {
		t.Fatal(err)
	}
	h := handler(Probes{}, reg, new(guard), false)
	forward, reverse := catalog.Key{Direction: relay.Forward, Name: "orders"}, catalog.Key{Direction: relay.Reverse, Name: "orders"}
	f, r := m.Pipeline(forward), m.Pipeline(reverse)
	f.Own(7)
	r.Own(3)
	f.Received(10, 1000)
	f.Polled(true)
	f.Polled(false)
	f.Polled(false)
	f.Published(9, 900, 20*time.Millisecond)
	f.Skipped(1)
	r.Skipped(2)
	f.Latency(time.Now().Add(-40 * time.Millisecond))
	f.SetHealth(HealthGood)
	r.SetHealth(HealthBad)
	f.SetLag(5, 1.5)
	f.SetUnaccounted(0)
	f.Committed(time.Millisecond)
	m.Unserved(map[catalog.Key]string{{Direction: relay.Forward, Name: "lonely"}: "kafka"})

	_, text := scrape(t, h, "/metrics")
	for _, want := range []string{
		`pgtrickle_relay_messages_published_total{direction="forward",pipeline="orders"} 9`,
		`pgtrickle_relay_messages_consumed_total{direction="forward",pipeline="orders"} 10`,
		`pgtrickle_relay_publish_errors_total{direction="forward",pipeline="orders"} 0`,
		`pgtrickle_relay_source_errors_total{direction="reverse",pipeline="orders"} 0`,
		`pgtrickle_relay_dedup_skipped_total{direction="forward",pipeline="orders"} 1`,
		`pgtrickle_relay_dedup_skipped_total{direction="reverse",pipeline="orders"} 2`,
		`pgtrickle_relay_dead_letters_total{direction="forward",pipeline="orders"} 0`,
		`pgtrickle_relay_polls_total{direction="forward",found="rows",pipeline="orders"} 1`,
		`pgtrickle_relay_polls_total{direction="forward",found="nothing",pipeline="orders"} 2`,
		`pgtrickle_relay_pipelines_owned 2`,
		`pgtrickle_relay_pipeline_healthy{direction="forward",pipeline="orders"} 1`,
		`pgtrickle_relay_pipeline_healthy{direction="reverse",pipeline="orders"} 0`,
		`pgtrickle_relay_lag_seconds{direction="forward",pipeline="orders"} 1.5`,
		`pgtrickle_relay_lag_rows{direction="forward",pipeline="orders"} 5`,
		`pgtrickle_relay_delivery_latency_seconds_bucket{direction="forward",pipeline="orders",le="0.05"} 1`,
		`pgtrickle_relay_delivery_latency_seconds_bucket{direction="forward",pipeline="orders",le="0.025"} 0`,
		`pgtrickle_relay_build_info{binary="relay-nats",goversion="go1",version="1.2.3"} 1`,
		`pgtrickle_relay_lease_epoch{direction="forward",pipeline="orders"} 7`,
		`pgtrickle_relay_unaccounted_rows{direction="forward",pipeline="orders"} 0`,
		`pgtrickle_relay_pipeline_unserved{backend="kafka",direction="forward",pipeline="lonely"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("metrics lack %s", want)
		}
	}
	f.LagUnknown()
	_, text = scrape(t, h, "/metrics")
	if n := f.Numbers(); strings.Contains(text, "_lag_") || n.LagRows != nil || n.LagSeconds != nil {
		t.Errorf("a lag that could not be measured is shown: %+v", n)
	}
	r.Disown()
	f.Disown()
	_, text = scrape(t, h, "/metrics")
	if strings.Contains(text, "lease_epoch") || !strings.Contains(text, `messages_published_total{direction="forward",pipeline="orders"} 9`) {
		t.Error("a pipeline that runs elsewhere must lose its gauges and keep its counters")
	}
	m.Keep(func(k catalog.Key) bool { return k == reverse })
	m.Unserved(nil)
	_, text = scrape(t, h, "/metrics")
	if strings.Contains(text, `direction="forward"`) || !strings.Contains(text, `direction="reverse"`) {
		t.Errorf("the series of a deleted pipeline must disappear, and no others:\n%s", text)
	}
	if t.Failed() {
		t.Log(text)
	}
}

// A thousand idle pipelines took 21 MB for their metrics.
func TestIdlePipelineIsSmall(t *testing.T) {
	const pipelines, most = 1000, 1024 // bytes
	m, err := NewMetrics(prometheus.NewRegistry(), "b", "v", "g")
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range pipelines {
		m.Pipeline(catalog.Key{Direction: relay.Forward, Name: fmt.Sprint(i)})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / pipelines; each > most {
		t.Errorf("an idle pipeline takes %d bytes, want at most %d", each, most)
	}
	runtime.KeepAlive(m)
}

func TestHistogramsOfNothingAreAbsent(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	m, err := NewMetrics(reg, "b", "v", "g")
	if err != nil {
		t.Fatal(err)
	}
	p := m.Pipeline(catalog.Key{Direction: relay.Forward, Name: "p"})
	h := handler(Probes{}, reg, new(guard), false)
	if _, text := scrape(t, h, "/metrics"); strings.Contains(text, "_bucket") || !strings.Contains(text, "messages_consumed_total") {
		t.Errorf("an idle pipeline has histograms, or no counters:\n%s", text)
	}
	p.Committed(time.Millisecond)
	if _, text := scrape(t, h, "/metrics"); !strings.Contains(text, `commit_duration_seconds_count{direction="forward",pipeline="p"} 1`) {
		t.Errorf("the histogram of a commit is missing:\n%s", text)
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	m, err := NewMetrics(prometheus.NewRegistry(), "b", "v", "g")
	if err != nil {
		t.Fatal(err)
	}
	p := m.Pipeline(catalog.Key{Direction: relay.Forward, Name: "p"})
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		p.Received(1, 1)
		p.Published(1, 1, time.Millisecond)
		p.Latency(now)
		p.Committed(time.Millisecond)
		p.InFlight(1)
		p.Skipped(1)
		p.Polled(true)
		p.Delivering(now)
	}); n != 0 {
		t.Errorf("%v allocations for each batch, want none", n)
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	health := Health{Status: Healthy, PipelinesOwned: 3, UptimeSeconds: 42}
	var ready error
	h := handler(Probes{
		Health: func() Health { return health },
		Ready:  func() error { return ready },
		Live:   func() error { return nil },
	}, prometheus.NewRegistry(), new(guard), false)

	code, body := scrape(t, h, "/health")
	if code != 200 || !strings.HasPrefix(body, `{"status":"healthy","pipelines_owned":3,"uptime_seconds":42`) {
		t.Errorf("/health = %d %s", code, body)
	}
	health.Status, health.Reasons = Unhealthy, []string{"PostgreSQL: away"}
	if code, body = scrape(t, h, "/health"); code != 503 || !json.Valid([]byte(body)) || !strings.Contains(body, "PostgreSQL: away") {
		t.Errorf("/health = %d %s", code, body)
	}
	if code, _ = scrape(t, h, "/status.json"); code != 200 {
		t.Errorf("/status.json = %d, want 200 whatever the health", code)
	}
	if code, _ = scrape(t, h, "/livez"); code != 200 {
		t.Errorf("/livez = %d", code)
	}
	ready = errors.New("draining")
	if code, body = scrape(t, h, "/readyz"); code != 503 || body != "draining\n" {
		t.Errorf("/readyz = %d %q", code, body)
	}
	if code, _ = scrape(t, h, "/debug/pprof/"); code != 404 {
		t.Errorf("/debug/pprof/ = %d without the flag", code)
	}
	code, body = scrape(t, h, "/")
	if code != 200 || !strings.Contains(body, "status.json") {
		t.Errorf("/ = %d", code)
	}
	for _, foreign := range []string{"http://", "https://", "//cdn", "@import", "src="} {
		if strings.Contains(body, foreign) {
			t.Errorf("the status page fetches from elsewhere: it has %q", foreign)
		}
	}
	if code, _ = scrape(t, h, "/nowhere"); code != 404 {
		t.Errorf("/nowhere = %d, want 404", code)
	}
}

// full returns metrics with every series there can be.
func full(t *testing.T) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	m, err := NewMetrics(reg, "relay-nats", "1.2.3", "go1")
	if err != nil {
		t.Fatal(err)
	}
	p := m.Pipeline(catalog.Key{Direction: relay.Forward, Name: "p"})
	p.Own(1)
	p.SetHealth(HealthGood)
	p.SetLag(0, 0)
	p.SetUnaccounted(0)
	p.Committed(time.Second)
	p.Published(1, 1, time.Second)
	p.Latency(time.Now())
	m.Unserved(map[catalog.Key]string{{Direction: relay.Forward, Name: "lonely"}: "kafka"})
	m.SetCaptureProblems(map[string]int{"outbox_orders": 1})
	return reg
}

// The rules that "promtool check metrics" applies.
func TestMetricsFollowTheRulesOfPrometheus(t *testing.T) {
	t.Parallel()
	families, err := full(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
}

func TestAlertsAndDashboardNameMetricsThatExist(t *testing.T) {
	t.Parallel()
	families, err := full(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	exists := make(map[string]bool)
	for _, f := range families {
		exists[f.GetName()] = true
		if f.GetType() == dto.MetricType_HISTOGRAM {
			exists[f.GetName()+"_bucket"] = true
		}
	}

	for _, file := range []string{"alerts.yaml", "grafana.json"} {
		text, err := os.ReadFile(filepath.Join("../../../deploy", file))
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(namespace+`_[a-z_]+`).FindAllString(string(text), -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric", file)
		}
		for _, name := range names {
			if !exists[name] {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
	}
}

// A counter that is first scraped above 0 has no increase.
func TestAlertOnDeadLettersReadsTheGauge(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../deploy/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "(pgtrickle_relay_dead_letters) > 0") || strings.Contains(string(text), "dead_letters_total") {
		t.Error("the alert on dead letters does not use the gauge")
	}
}

func TestRefusedEndsWithADelivery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		metrics, err := NewMetrics(prometheus.NewRegistry(), "b", "v", "g")
		if err != nil {
			t.Fatal(err)
		}
		p := metrics.Pipeline(catalog.Key{Direction: relay.Forward, Name: "p"})
		expect := func(what string, want int64) {
			t.Helper()
			if got := p.Refused(); got != want {
				t.Errorf("%s: %d refused, want %d", what, got, want)
			}
		}
		expect("at the start", 0)
		p.Published(1, 1, time.Millisecond)
		p.DeadLettered(99)
		expect("99 dead letters just after a delivery", 0)
		p.DeadLettered(1)
		expect("100 dead letters", 100)
		p.Published(1, 1, time.Millisecond)
		expect("after a delivery", 0)

		time.Sleep(2 * time.Minute)
		p.DeadLettered(1)
		expect("the only message of the last minute", 1)
		time.Sleep(2 * time.Minute)
		expect("quiet since", 0)
		p.DeadLettered(100)
		time.Sleep(2 * time.Minute)
		expect("quiet since 100", 101)
		p.SetDeadLetters(0, 0)
		expect("all discarded", 0)
	})
}

func TestBucketsAscend(t *testing.T) {
	t.Parallel()
	for _, s := range histogramSeries {
		if !slices.IsSorted(s.buckets) {
			t.Errorf("the buckets of %s are %v", s.name, s.buckets)
		}
	}
}

// The command line may hold the database's password.
func TestPprofHidesTheCommandLine(t *testing.T) {
	t.Parallel()
	h := handler(Probes{}, prometheus.NewRegistry(), new(guard), true)
	for path, want := range map[string]int{"/debug/pprof/cmdline": http.StatusNotFound, "/debug/pprof/goroutine": http.StatusOK} {
		if code, _ := scrape(t, h, path); code != want {
			t.Errorf("GET %s = %d, want %d", path, code, want)
		}
	}
}
