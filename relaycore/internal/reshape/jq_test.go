package reshape_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/reshape"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func jq(t testing.TB, c reshape.JQConfig) *reshape.JQ {
	t.Helper()
	j, err := reshape.NewJQ(c)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func message(row string) relay.Message {
	return relay.Message{
		ID: "outbox_orders:5:0", Op: relay.OpUpdate, Row: []byte(row), Before: []byte(`{"id": 6}`), StreamTable: "orders", OutboxID: 5,
		Key: "7", Headers: []relay.Header{{Name: "tenant", Value: "acme"}},
	}
}

func TestFilter(t *testing.T) {
	t.Parallel()
	for filter, want := range map[string]string{
		`.row.id == 7`:            "kept",
		`.row.id > 7`:             "dropped",
		`.row.missing`:            "dropped",
		`0`:                       "kept",
		`empty`:                   "dropped",
		`select(.op == "update")`: "kept",
		`.before.id == 6 and .op == "update" and .stream_table == "orders" and .headers.tenant == "acme" and .key == "7" and .outbox_id == 5`: "kept",
		`.row.big == 12345678901234567890123`: "kept",
		`.row.big == 12345678901234567890124`: "dropped",
		`.row.note | test("^te")`:             "kept",
		`.row.tags | contains(["a"])`:         "kept",
		`.row.id + "x"`:                       `filter: cannot add`,
		`.row.tags[] == "a"`:                  "filter: gives more than one value",
		`error("no")`:                         "filter: error: no",
		`halt_error`:                          "",
	} {
		if want == "" {
			continue
		}
		m := message(`{"id": 7, "note": "tea", "tags": ["a", "b"], "big": 12345678901234567890123}`)
		jq(t, reshape.JQConfig{Filter: filter}).Apply(&m)
		got := "kept"
		switch {
		case errors.Is(m.Err, relay.ErrFiltered):
			got = "dropped"
		case m.Err != nil:
			got = m.Err.Error()
			var e *reshape.Error
			if !relay.IsPermanent(m.Err) || !errors.As(m.Err, &e) || e.Class() != "transform" {
				t.Errorf("%s: error %#v", filter, m.Err)
			}
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", filter, got, want)
		}
	}
}

func TestTransform(t *testing.T) {
	t.Parallel()
	const row = `{"id": 7, "z": 1e400, "a": 0.10, "n": 12345678901234567890, "s": "<\u00e9>"}`
	for transform, want := range map[string]string{
		`.row`:                                          `{"a":0.10,"id":7,"n":12345678901234567890,"s":"<é>","z":1e400}`,
		`{z: .row.z, id: .row.id}`:                      `{"id":7,"z":1e400}`,
		`.row + {op: .op}`:                              `{"a":0.10,"id":7,"n":12345678901234567890,"op":"update","s":"<é>","z":1e400}`,
		`.row | del(.a, .z, .s) | .id += 1`:             `{"id":8,"n":12345678901234567890}`,
		`.row | .id |= . * 100 | {id}`:                  `{"id":700}`,
		`.row | with_entries(select(.key == "n"))`:      `{"n":12345678901234567890}`,
		`.row | to_entries | map(.key) | join(",")`:     `"a,id,n,s,z"`,
		`"\(.row.id)-\(.op)"`:                           `"7-update"`,
		`.row.s | gsub("é"; "e")`:                       `"<e>"`,
		`[.row.id, .before.id] | add`:                   `13`,
		`.row.n + 1`:                                    `12345678901234567891`,
		`if .row.id > 5 then {big: true} else .row end`: `{"big":true}`,
		`.row as {$id} | [$id] | first`:                 `7`,
		`reduce (1,2,3) as $x (0; . + $x)`:              `6`,
		`null`:                                          `null`,
		`@base64 "\(.op)"`:                              `"dXBkYXRl"`,
		`empty`:                                         "transform: gives no value",
		`.row.id, 2`:                                    "transform: gives more than one value",
	} {
		m := message(row)
		jq(t, reshape.JQConfig{Transform: transform}).Apply(&m)
		got := string(m.Payload.JSON)
		if m.Err != nil {
			got = m.Err.Error()
		}
		if got != want && (m.Err == nil || !strings.HasPrefix(got, want)) {
			t.Errorf("%s: %s, want %s", transform, got, want)
		}
		if string(m.Row) != row {
			t.Errorf("%s changed the row, of which a dead letter is made", transform)
		}
	}
}

func TestInvalidExpressions(t *testing.T) {
	for expression, want := range map[string]string{
		`.row.id ==`:                 "is not a jq expression: unexpected EOF at character 11",
		`.row | é | ]`:               `at character 8`,
		`.row | }`:                   `is not a jq expression: unexpected token "}" at character 8`,
		`.row | nope`:                `function "nope" is not allowed at character 8`,
		`def f: 1; f`:                `"def" is not allowed at character 1`,
		`[range(9)]`:                 `"range" is not allowed`,
		`limit(1; .row)`:             `"limit" is not allowed`,
		`[repeat(1)]`:                `"repeat"`,
		`until(.; .)`:                `"until"`,
		`[.[] | while(.; .)]`:        `"while"`,
		`input`:                      `"input"`,
		`inputs`:                     `"inputs"`,
		`env`:                        `"env"`,
		`$ENV`:                       `"$ENV"`,
		`import "x" as x; .`:         `modules are not allowed`,
		`include "x"; .`:             `modules are not allowed`,
		`.row[.row.n] = 1`:           `only literal names and indices up to 9999`,
		`.row[100000000] = 1`:        `only literal names`,
		`.row | setpath([1]; 2)`:     `"setpath"`,
		`.row.n *= 2`:                `"*=" is not allowed`,
		`getpath([1]) |= 2`:          `"getpath" is not allowed on the left`,
		`gsub("a"; .row.x)`:          `the arguments of "gsub" are not literals`,
		`"\(range(9))"`:              `"range"`,
		`{a: range(9)}`:              `"range"`,
		`.row[range(9)]`:             `"range"`,
		`. as {(range(9)): $x} | $x`: `"range"`,
		`try range(9) catch .`:       `"range"`,
		strings.Repeat("1", 17<<10):  "at most 16384",
	} {
		c := reshape.JQConfig{Filter: expression}
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `key "filter"`) {
			t.Errorf("%.40s: %v, want %q", expression, err, want)
		}
	}
	// What stays out even without restrictions.
	t.Setenv("CANARY", "canary")
	for _, expression := range []string{`input`, `import "/etc/passwd" as $x; .`, `include "x"; .`, `nope`} {
		if _, err := reshape.NewJQ(reshape.JQConfig{Filter: expression, Unrestricted: true}); err == nil {
			t.Errorf("%s compiles", expression)
		}
	}
	for _, expression := range []string{`env`, `$ENV`, `[debug, stderr, input_filename]`, `halt`, `halt_error`, `[inputs]`} {
		j, err := reshape.NewJQ(reshape.JQConfig{Transform: expression, Unrestricted: true})
		if err != nil {
			continue
		}
		m := message(`{}`)
		if j.Apply(&m); strings.Contains(string(m.Payload.JSON), "canary") {
			t.Errorf("%s reads the environment: %s", expression, m.Payload.JSON)
		}
	}
}

// Numbers of a row come out as they are written there.
func TestNumbersStayExact(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	digits := func(n int) string {
		s := []byte{'1' + byte(r.IntN(9))}
		for range r.IntN(n) {
			s = append(s, '0'+byte(r.IntN(10)))
		}
		return string(s)
	}
	j := jq(t, reshape.JQConfig{Filter: `.row.n != null`, Transform: `{n: .row.n, list: [.row.list[]], nested: {x: .row.nested.x}}`})
	for range 5000 {
		number := func() string {
			s := []string{"", "-"}[r.IntN(2)] + []string{"0", digits(40)}[r.IntN(2)]
			if r.IntN(2) == 0 {
				s += "." + strings.Repeat("0", r.IntN(3)) + digits(30) + strings.Repeat("0", r.IntN(3))
			}
			if r.IntN(3) == 0 {
				s += []string{"e", "E", "e-", "E+"}[r.IntN(4)] + digits(4)
			}
			return s
		}
		n, a, b, x := number(), number(), number(), number()
		m := message(fmt.Sprintf(`{"n": %s, "list": [%s, %s], "nested": {"x": %s}}`, n, a, b, x))
		j.Apply(&m)
		if want := fmt.Sprintf(`{"list":[%s,%s],"n":%s,"nested":{"x":%s}}`, a, b, n, x); m.Err != nil || string(m.Payload.JSON) != want {
			t.Fatalf("payload %s, %v\nwant %s", m.Payload.JSON, m.Err, want)
		}
	}
}

// hostile are expressions that would take memory or time without bounds.
var hostile = []string{
	`.row.note | ` + strings.Repeat(`.+.|`, 60) + `length`,
	`.row | ` + strings.Repeat(`[.,.]|`, 60) + `tojson`,
	`.row | ` + strings.Repeat(`[.,.]|`, 60) + `. == .`,
	`.row | ` + strings.Repeat(`{a:.,b:.}|`, 60) + `flatten`,
	`.row.id | ` + strings.Repeat(`.*.|`, 60) + `.`,
	`.row.note | ` + strings.Repeat(`tojson|`, 60) + `length`,
	`.row.note | ` + strings.Repeat(`"\(.)\(.)"|`, 60) + `length`,
	`.row.note | ` + strings.Repeat(`[.,.]|join("xxxxxxxxxx")|`, 60) + `length`,
	`.row.note | ` + strings.Repeat(`gsub("";"xxxxxxxxxx")|`, 60) + `length`,
	`.row | ` + strings.Repeat(`.a = .|.b = .|`, 60) + `tojson`,
	`.row.note | ` + strings.Repeat(`explode|map(.,.)|implode|`, 60) + `length`,
	`.row.note | explode | ` + strings.Repeat(`map(.,.)|`, 60) + `. - .`,
	`[recurse(. + 1)]`,
	`[.row | recurse(tojson)] | length`,
	`[.row | recurse([.])] | length`,
	`first(.row | recurse(.) | select(false))`,
	`.row.note * 1000000000`,
	`.row.note as $n | [recurse(. ) | $n + "x"] | length`,
	`[limit(3; .)]`,
	`[.row.note | recurse(. + .)]`,
	`.row.note | @json "\(.)" | @base64 | ` + strings.Repeat(`@base64|`, 60) + `length`,
}

// One hostile expression after the other ends in an error soon, and takes little memory.
func TestHostileExpressions(t *testing.T) {
	for _, expression := range hostile {
		j, err := reshape.NewJQ(reshape.JQConfig{Transform: expression})
		if err != nil {
			continue // refused, which is as good
		}
		m := message(`{"id": 123456789, "note": "` + strings.Repeat("x", 1000) + `"}`)
		peak := peakOf(func() {
			began := time.Now()
			j.Apply(&m)
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("%.60s took %s", expression, took)
			}
		})
		if m.Err == nil {
			t.Errorf("%.60s: value of %d bytes", expression, len(m.Payload.JSON))
		}
		if peak > 256<<20 {
			t.Errorf("%.60s: heap of %d MiB", expression, peak>>20)
		}
		t.Logf("%.40s: %d MiB, %.100v", expression, peak>>20, m.Err)
	}
	// Even without restrictions no payload is larger, and no evaluation longer.
	for _, expression := range []string{`[range(1e9)]`, `def f: f; f`, `reduce range(60) as $i (.row; [., .])`, `last(repeat(1))`} {
		m := message(`{}`)
		began := time.Now()
		jq(t, reshape.JQConfig{Transform: expression, Unrestricted: true}).Apply(&m)
		if took := time.Since(began); m.Err == nil || took > 2*time.Second {
			t.Errorf("%s: %d bytes after %s", expression, len(m.Payload.JSON), took)
		}
	}
}

// peakOf returns the largest heap while f runs.
func peakOf(f func()) (peak uint64) {
	runtime.GC()
	done, sampled := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sampled)
		var s runtime.MemStats
		for {
			runtime.ReadMemStats(&s)
			peak = max(peak, s.HeapAlloc)
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	f()
	close(done)
	<-sampled
	return peak
}

// Evaluations that take long run one at a time, and do not slow those that do not.
func TestHostileNeighbours(t *testing.T) {
	quick := func() time.Duration {
		j := jq(t, reshape.JQConfig{Filter: `.row.id > 5`})
		var took []time.Duration
		for range 2000 {
			m := message(`{"id": 7}`)
			began := time.Now()
			j.Apply(&m)
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	alone := quick()

	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 20 {
		j := jq(t, reshape.JQConfig{Filter: `first(.row | recurse(.) | select(false))`})
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				m := message(`{"id": 7}`)
				if j.Apply(&m); m.Err == nil {
					t.Error("a hostile expression has a value")
				}
			}
		})
	}
	time.Sleep(500 * time.Millisecond) // they wait for each other by then
	beside := quick()
	close(stop)
	wg.Wait()
	t.Logf("median of an evaluation: %s alone, %s beside 20 hostile ones", alone, beside)
	if beside > 10*alone+100*time.Microsecond {
		t.Errorf("an evaluation takes %s beside hostile ones, %s alone", beside, alone)
	}
}

func BenchmarkJQ(b *testing.B) {
	row := `{"id": 1234567, "email": "ada@example.org", "total": 12.50, "note": "` + strings.Repeat("x", 200) + `"}`
	for name, c := range map[string]reshape.JQConfig{
		"filter":    {Filter: `.row.id > 5`},
		"transform": {Transform: `{id: .row.id, total: .row.total}`},
		"whole row": {Transform: `.row + {op: .op}`},
	} {
		b.Run(name, func(b *testing.B) {
			j := jq(b, c)
			b.ReportAllocs()
			for b.Loop() {
				m := message(row)
				if j.Apply(&m); m.Err != nil {
					b.Fatal(m.Err)
				}
			}
		})
	}
}

func TestInputIsJSON(t *testing.T) {
	t.Parallel()
	m := message(`{"a": {"b": [1, null, true, "x"]}}`)
	m.Before = nil
	jq(t, reshape.JQConfig{Transform: `.`}).Apply(&m)
	const want = `{"before":null,"headers":{"tenant":"acme"},"key":"7","op":"update","outbox_id":5,"row":{"a":{"b":[1,null,true,"x"]}},"stream_table":"orders"}`
	if string(m.Payload.JSON) != want || !json.Valid(m.Payload.JSON) {
		t.Errorf("input %s, want %s", m.Payload.JSON, want)
	}
}
