package relaycmd

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// TestAlerts causes what each alert of deploy/alerts.yaml is about, in relays that run. It
// records their /metrics, and has promtool evaluate the alerts over the record. Each alert
// fires in its phase, and none before.
func TestAlerts(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("RELAY_TEST_REQUIRE") != "" {
			t.Fatal("promtool is not installed (Debian package prometheus)")
		}
		t.Skip("promtool is not installed")
	}
	w := newWorld(t)
	w.exec(t, `CREATE TABLE late (id bigserial PRIMARY KEY, payload jsonb);
		CREATE TABLE unseen (id int PRIMARY KEY); SELECT pgtrickle.enable_outbox('public.unseen'); SELECT pgtrickle.create_inbox('arrivals')`)
	w.pipeline(t, "fine", "")
	w.pipeline(t, "late", `"stream_table": "public.late"`)
	p := startRelay(t, w.url)
	w.exec(t, `INSERT INTO late (payload) SELECT '{}' FROM generate_series(1, 3)`)
	w.insert(t, 1, 3)
	eventually(t, "both deliver", patience, func() bool { return len(lines(w.spool("fine")))+len(lines(w.spool("late"))) == 6 })
	var r scrapes
	r.phase(t, p, 10*time.Millisecond)
	p.signal(t, syscall.SIGTERM)
	p.exit(t)

	// Rows that are gone before they are delivered, and one of a transaction that is long
	// over for the relay.
	w.exec(t, `INSERT INTO late (payload) SELECT '{}' FROM generate_series(4, 6); DELETE FROM late`)
	w.exec(t, `INSERT INTO pgtrickle.outbox_orders (xid, payload) VALUES ('3', '{"v":1,"inserted":[]}')`)
	w.insert(t, 4, 4)
	w.exec(t, `INSERT INTO late (payload) VALUES ('{}')`)
	w.exec(t, `UPDATE pgtrickle.outbox_orders SET created_at = now() - interval '10 minutes'; ALTER TABLE unseen DISABLE TRIGGER ALL`)
	w.pipeline(t, "refused", `"spool_poison": "2"`)
	w.pipeline(t, "full", `"spool_path": "/dev/full"`)
	w.raw(t, "unserved", `{"stream_table": "public.orders", "sink_type": "absent"}`)
	w.exec(t, `UPDATE pgtrickle.relay_outbox_config SET enabled = true WHERE name = 'unserved'`)
	w.exec(t, `SELECT pgtrickle.set_relay_inbox('torn', config => $1::jsonb); `, fmt.Sprintf(`{"inbox_table": "arrivals", "source_type": "spool", "spool_path": %q}`, w.dir))
	w.exec(t, `SELECT pgtrickle.enable_relay('torn')`)
	if err := os.WriteFile(w.spool("refused.poison"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p = startRelay(t, w.url)
	eventually(t, "late delivers", patience, func() bool { return len(lines(w.spool("late"))) == 4 })
	for _, series := range []string{
		`unaccounted_rows{`, `overtaken_ids{`, `dead_letters{`, `pipeline_unserved{`, `capture_problems{`, `publish_errors_total{`, `source_errors_total{`,
	} {
		eventually(t, series, time.Minute, func() bool { return p.above(series) })
	}
	r.phase(t, p, 1200*time.Millisecond) // a step that fails is repeated once a second

	// The database is gone: the metrics stay.
	name := w.pool.Config().ConnConfig.Database
	admin := &world{pool: pgtest.Open(t, strings.Replace(w.url, "/"+name, "/postgres", 1))}
	admin.exec(t, fmt.Sprintf(`ALTER DATABASE %q ALLOW_CONNECTIONS false`, name))
	defer admin.exec(t, fmt.Sprintf(`ALTER DATABASE %q ALLOW_CONNECTIONS true`, name))
	admin.exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`, name)
	eventually(t, "the session is down", time.Minute, func() bool { return !p.above("session_up ") && !p.above("pipelines_owned ") })
	r.phase(t, p, 10*time.Millisecond)

	rules, err := filepath.Abs("../../deploy/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "test.yaml")
	if err := os.WriteFile(file, r.rulesTest(t, rules), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "test", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// above reports whether a series of the relay whose text begins so is above 0.
func (p *process) above(series string) bool {
	_, body := p.get("/metrics")
	for line := range strings.Lines(body) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), "} "); strings.HasPrefix(line, "pgtrickle_relay_"+series) {
			if value == "" {
				_, value, _ = strings.Cut(name, " ")
			}
			if value != "0" {
				return true
			}
		}
	}
	return false
}

// phaseSamples is the length of a phase: a sample stands for a minute.
const phaseSamples = 20

// scrapes has the samples of each series, a phase after the other.
type scrapes struct {
	phases int
	series map[string][]string // "_" where there is none
}

// phase scrapes a relay at such intervals.
func (r *scrapes) phase(t *testing.T, p *process, every time.Duration) {
	t.Helper()
	if r.series == nil {
		r.series = map[string][]string{}
	}
	for range phaseSamples {
		code, body := p.get("/metrics")
		if code != 200 {
			t.Fatalf("/metrics = %d", code)
		}
		for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
			line := lines.Text()
			at := strings.LastIndexByte(line, ' ')
			if !strings.HasPrefix(line, "pgtrickle_relay_") || strings.Contains(line, "_bucket{") {
				continue
			}
			r.add(line[:at], line[at+1:])
		}
		r.phases++
		time.Sleep(every)
	}
}

func (r *scrapes) add(series, value string) {
	samples := r.series[series]
	for len(samples) < r.phases {
		samples = append(samples, "_")
	}
	r.series[series] = append(samples, value)
}

// fires is the phase in which an alert must fire; those of the second are left out.
var fires = map[string]int{"RelaySessionDown": 3, "RelayPipelinesWithoutOwner": 3, "RelayDown": 4}

// rulesTest returns a test for promtool. No alert fires in the first phase, and each in
// the last minute of its own.
func (r *scrapes) rulesTest(t *testing.T, rules string) []byte {
	t.Helper()
	text, err := os.ReadFile(rules)
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`- alert: (\w+)`).FindAllSubmatch(text, -1)
	if len(alerts) < 12 {
		t.Fatalf("%d alerts in %s", len(alerts), rules)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "rule_files: [%q]\nevaluation_interval: 1m\ntests:\n- interval: 1m\n  input_series:\n", rules)
	for _, name := range slices.Sorted(maps.Keys(r.series)) {
		fmt.Fprintf(&b, "  - series: '%s'\n    values: '%s'\n", name, strings.Join(r.series[name], " "))
	}
	b.WriteString("  promql_expr_test:\n")
	for _, a := range alerts {
		phase := max(2, fires[string(a[1])])
		for at, want := range map[int]int{phaseSamples - 1: 0, phase*phaseSamples - 1: 1} {
			fmt.Fprintf(&b, "  - expr: 'count(ALERTS{alertname=\"%s\",alertstate=\"firing\"}) > bool 0 or vector(0)'\n    eval_time: %dm\n"+
				"    exp_samples: [{labels: '{}', value: %d}]\n", a[1], at, want)
		}
	}
	return b.Bytes()
}
