package relaycmd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// condition is a random jq expression on a row, and what it means.
type condition struct {
	jq    string
	keeps func(r record) bool
}

type record struct {
	ID    int    `json:"id"`
	Total int    `json:"total"`
	Name  string `json:"name"`
	Paid  *bool  `json:"paid"`
}

func randomCondition(r *rand.Rand, depth int) condition {
	if depth > 0 && r.IntN(3) > 0 {
		a, b := randomCondition(r, depth-1), randomCondition(r, depth-1)
		switch r.IntN(3) {
		case 0:
			return condition{"(" + a.jq + " and " + b.jq + ")", func(x record) bool { return a.keeps(x) && b.keeps(x) }}
		case 1:
			return condition{"(" + a.jq + " or " + b.jq + ")", func(x record) bool { return a.keeps(x) || b.keeps(x) }}
		}
		return condition{"(" + a.jq + " | not)", func(x record) bool { return !a.keeps(x) }}
	}
	n, letter := r.IntN(1000), string(rune('a'+r.IntN(6)))
	return []condition{
		{fmt.Sprintf(".row.total < %d", n), func(x record) bool { return x.Total < n }},
		{fmt.Sprintf(".row.total + .row.id >= %d", n), func(x record) bool { return x.Total+x.ID >= n }},
		{fmt.Sprintf(".row.name | startswith(%q)", letter), func(x record) bool { return strings.HasPrefix(x.Name, letter) }},
		{fmt.Sprintf(".row.name | test(%q)", letter+"."), func(x record) bool {
			i := strings.Index(x.Name, letter)
			return i >= 0 && i < len(x.Name)-1
		}},
		{".row.paid", func(x record) bool { return x.Paid != nil && *x.Paid }},
		{".row.paid == null", func(x record) bool { return x.Paid == nil }},
		{fmt.Sprintf(".row.id %% 7 == %d", n%7), func(x record) bool { return x.ID%7 == n%7 }},
	}[r.IntN(7)].bracketed()
}

func (c condition) bracketed() condition { return condition{"(" + c.jq + ")", c.keeps} }

func randomRecords(r *rand.Rand, n int) (records []record) {
	for id := range n {
		x := record{ID: id, Total: r.IntN(1000), Name: string([]rune{rune('a' + r.IntN(6)), rune('a' + r.IntN(6)), rune('a' + r.IntN(6))})}
		if b := r.IntN(3); b < 2 {
			x.Paid = new(b == 0)
		}
		records = append(records, x)
	}
	return records
}

// 10,000 random rows run through random filters. What arrives is what Go keeps, and the jq
// command if it is installed. All rows are accounted for.
func TestRandomFilters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, `CREATE TABLE records (id int PRIMARY KEY, total int, name text, paid boolean, big numeric)`)
	w.exec(t, `SELECT pgtrickle.enable_outbox('public.records')`)
	r := rand.New(rand.NewPCG(21, 1))
	const rows = 10_000
	records := randomRecords(r, rows)
	data, err := json.Marshal(records)
	if err != nil {
		t.Fatal(err)
	}
	conditions := make([]condition, 12)
	for i := range conditions {
		conditions[i] = randomCondition(r, 3)
		more := ""
		if i%2 == 1 { // columns and a transform beside it: what the filter sees stays
			more = `,"columns":{"mask":{"big":"null"}},"transform":"{id: .row.id, big: .row.big}"`
		}
		w.pipeline(t, fmt.Sprintf("p%d", i), fmt.Sprintf(`"stream_table":"public.records","spool_whole":true,"format":"payload","filter":%q%s`,
			conditions[i].jq, more))
	}
	w.exec(t, `INSERT INTO records SELECT *, 12345678901234567890.10 FROM json_to_recordset($1) AS x(id int, total int, name text, paid boolean)`, data)

	p := startRelay(t, w.url)
	for i, c := range conditions {
		name := fmt.Sprintf("p%d", i)
		var want []int
		for _, x := range records {
			if c.keeps(x) {
				want = append(want, x.ID)
			}
		}
		if said := byCommand(t, data, ".", c.jq); said != nil && !slices.Equal(said, want) {
			t.Fatalf("%s: the jq command keeps %d rows, Go %d", c.jq, len(said), len(want))
		}
		var acc struct{ Committed, Delivered, Filtered, Pending, Unaccounted int }
		eventually(t, name+" is settled", patience, func() bool {
			out, _, _ := runBinary(t, nil, "verify", name, "--postgres-url", w.url, "--output", "json")
			return json.Unmarshal([]byte(out), &acc) == nil && acc.Pending == 0 && acc.Delivered == rows
		})
		got, bodies := w.received(t, name)
		if !slices.Equal(got, want) {
			t.Fatalf("%s: %d rows arrived, want %d", c.jq, len(got), len(want))
		}
		if acc.Filtered != rows-len(want) || acc.Unaccounted != 0 {
			t.Errorf("%s: %+v, want %d filtered", c.jq, acc, rows-len(want))
		}
		if _, metrics := p.get("/metrics"); rows > len(want) &&
			!strings.Contains(metrics, fmt.Sprintf(`filtered_total{direction="forward",pipeline=%q} %d`, name, rows-len(want))) {
			t.Errorf("%s: filtered_total is not %d", name, rows-len(want))
		}
		for j, body := range bodies {
			if i%2 == 0 && !strings.Contains(body, `12345678901234567890.10`) || i%2 == 1 && body != fmt.Sprintf(`{"big":null,"id":%d}`, got[j]) {
				t.Fatalf("%s: body %s", name, body)
			}
		}
	}
}

// received returns the ids and bodies of the rows in a spool.
func (w *world) received(t *testing.T, name string) (ids []int, bodies []string) {
	t.Helper()
	for _, line := range lineTexts(w.spool(name)) {
		if line == "" {
			continue
		}
		var m struct{ Row, Body string }
		var row record
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(m.Row), &row); err != nil {
			t.Fatal(err)
		}
		ids, bodies = append(ids, row.ID), append(bodies, m.Body)
	}
	return ids, bodies
}

// byCommand returns the ids of the records that the jq command keeps of what columns, an
// expression, leaves of them; nil without jq.
func byCommand(t *testing.T, records []byte, columns, filter string) (ids []int) {
	t.Helper()
	if _, err := exec.LookPath("jq"); err != nil {
		return nil
	}
	cmd := exec.Command("jq", "-c", "[.[] | {row: ("+columns+")} | select("+filter+") | .row.id]")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(records), os.Stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &ids)
	}
	if err != nil {
		t.Fatalf("jq: %v", err)
	}
	return ids
}

// projection is a random choice of columns, the same for jq, and the body that it leaves.
type projection struct {
	config, jq string
	body       func(x record) string
}

// randomProjection leaves id and name as they are: a filter fails on others of their types.
func randomProjection(r *rand.Rand) projection {
	state := map[string]int{} // 0 = as it is, 1 = left out, 2 = masked
	left, masked, jq := []string{`"id"`, `"name"`}, []string{}, "."
	excluded := []string{}
	for _, column := range []string{"total", "paid", "big"} {
		state[column] = r.IntN(3)
		switch state[column] {
		case 1:
			excluded, jq = append(excluded, fmt.Sprintf("%q", column)), jq+" | del(."+column+")"
			continue
		case 2:
			masked, jq = append(masked, fmt.Sprintf(`%q:"null"`, column)), jq+" | ."+column+" = null"
		}
		left = append(left, fmt.Sprintf("%q", column))
	}
	choice := `"exclude":[` + strings.Join(excluded, ",") + `]`
	if r.IntN(2) == 0 || len(excluded) == 0 {
		choice = `"include":[` + strings.Join(left, ",") + `]`
	}
	config := `{` + choice + `,"mask":{` + strings.Join(masked, ",") + `}}`
	return projection{config, jq, func(x record) string {
		paid := "null"
		if x.Paid != nil {
			paid = fmt.Sprint(*x.Paid)
		}
		members := []string{fmt.Sprintf(`"id":%d`, x.ID)}
		for _, c := range [][2]string{{"total", fmt.Sprint(x.Total)}, {"name", fmt.Sprintf("%q", x.Name)}, {"paid", paid}, {"big", "12345678901234567890.10"}} {
			switch state[c[0]] {
			case 0:
				members = append(members, fmt.Sprintf("%q:%s", c[0], c[1]))
			case 2:
				members = append(members, fmt.Sprintf("%q:null", c[0]))
			}
		}
		return "{" + strings.Join(members, ",") + "}"
	}}
}

// TestRandomColumns runs 10,000 random rows through random columns, and filters behind
// them. What arrives is what the jq command keeps of the remaining columns, with the values
// in the text of the row itself.
func TestRandomColumns(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("the jq command is not installed")
	}
	w := newWorld(t)
	w.exec(t, `CREATE TABLE records (id int PRIMARY KEY, total int, name text, paid boolean, big numeric)`)
	w.exec(t, `SELECT pgtrickle.enable_outbox('public.records')`)
	r := rand.New(rand.NewPCG(21, 2))
	records := randomRecords(r, 10_000)
	data, err := json.Marshal(records)
	if err != nil {
		t.Fatal(err)
	}
	conditions, columns := make([]condition, 10), make([]projection, 10)
	for i := range conditions {
		conditions[i], columns[i] = randomCondition(r, 3), randomProjection(r)
		w.pipeline(t, fmt.Sprintf("p%d", i), fmt.Sprintf(`"stream_table":"public.records","spool_whole":true,"format":"payload","filter":%q,"columns":%s`,
			conditions[i].jq, columns[i].config))
	}
	w.exec(t, `INSERT INTO records SELECT *, 12345678901234567890.10 FROM json_to_recordset($1) AS x(id int, total int, name text, paid boolean)`, data)
	startRelay(t, w.url)
	for i, c := range conditions {
		name, want := fmt.Sprintf("p%d", i), byCommand(t, data, columns[i].jq, c.jq)
		eventually(t, name+" is settled", patience, func() bool {
			var acc struct{ Pending, Delivered int }
			out, _, _ := runBinary(t, nil, "verify", name, "--postgres-url", w.url, "--output", "json")
			return json.Unmarshal([]byte(out), &acc) == nil && acc.Pending == 0 && acc.Delivered == len(records)
		})
		got, bodies := w.received(t, name)
		if !slices.Equal(got, want) {
			t.Fatalf("columns %s, filter %s: %d rows arrived, jq keeps %d", columns[i].config, c.jq, len(got), len(want))
		}
		for j, body := range bodies {
			var b bytes.Buffer // without the spaces between members; values keep their text
			if err := json.Compact(&b, []byte(body)); err != nil {
				t.Fatal(err)
			}
			if want := columns[i].body(records[got[j]]); b.String() != want {
				t.Fatalf("columns %s: body %s, want %s", columns[i].config, body, want)
			}
		}
	}
}

// An invalid expression is refused by check and by the start, with its position. A preview
// shows the row before, the body after, and what the filter drops.
func TestExpressionsInCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.insert(t, 1, 2)
	w.pipeline(t, "bad", `"filter":".row.id == 1 and ]"`)
	const problem = `key "filter": is not a jq expression: unexpected token "]" at character 18`
	out, _, _ := runBinary(t, nil, "check", "bad", "--postgres-url", w.url)
	if !strings.Contains(out, problem) {
		t.Errorf("check: %s", out)
	}
	p := startRelay(t, w.url)
	eventually(t, "the start reports it", patience, func() bool {
		_, health := p.get("/health")
		return strings.Contains(health, strings.ReplaceAll(problem, `"`, `\"`))
	})

	w.pipeline(t, "good", `"filter":".row.id == 1","transform":"{number: .row.id}","format":"payload"`)
	out, _, _ = runBinary(t, nil, "preview", "good", "--from", "1", "--postgres-url", w.url)
	for _, want := range []string{
		"row      {\"id\":1,\"note\":\"x\"}\n", "body     {\"number\":1}\n", "row      {\"id\":2,\"note\":\"x\"}\n  FILTERED by .row.id == 1\n",
	} {
		if !strings.Contains(strings.ReplaceAll(strings.ReplaceAll(out, ", ", ","), ": ", ":"), strings.ReplaceAll(want, ": ", ":")) {
			t.Errorf("no %q in the preview:\n%s", want, out)
		}
	}

	// A failing expression makes a dead letter of its class; a corrected one delivers it.
	w.pipeline(t, "fails", `"transform":"{number: (.row.note + 1)}","format":"payload","spool_whole":true`)
	class := func() (class string) {
		_ = w.pool.QueryRow(t.Context(), `SELECT string_agg(DISTINCT class, ',') FROM pgtrickle.relay_dead_letters`).Scan(&class)
		return class
	}
	eventually(t, "a dead letter", patience, func() bool { return class() == "transform" })
	w.pipeline(t, "fails", `"transform":"{number: (.row.note + \"1\")}","format":"payload","spool_whole":true`)
	eventually(t, "delivery", patience, func() bool {
		w.exec(t, `SELECT pgtrickle.relay_dlq_retry('fails')`) // until the correction is in force
		return strings.Count(strings.Join(lineTexts(w.spool("fails")), ""), `{\"number\":\"x1\"}`) >= 2
	})
}

// Into an inbox, too, the filter drops messages and the transform makes the payload.
func TestFilterIntoAnInbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, `SELECT pgtrickle.create_inbox('events')`)
	if err := os.WriteFile(w.spool("in"), []byte("{\"id\": 1}\n{\"id\": 2, \"n\": 12345678901234567890.5}\n{\"id\": 3, \"n\": 0.10}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.exec(t, `SELECT pgtrickle.set_relay_inbox('in', config => $1::jsonb), pgtrickle.enable_relay('in')`, fmt.Sprintf(
		`{"inbox_table":"events","source_type":"spool","spool_path":%q,"filter":".row.id > 1","transform":"{n: .row.n, op: .op}"}`, w.spool("in")))
	p := startRelay(t, w.url)
	var arrived string
	eventually(t, "arrival", patience, func() bool {
		_ = w.pool.QueryRow(t.Context(), `SELECT string_agg(payload::text, ' ' ORDER BY event_id) FROM pgtrickle.events`).Scan(&arrived)
		return arrived == `{"n": 12345678901234567890.5, "op": "event"} {"n": 0.10, "op": "event"}`
	})
	eventually(t, "count", patience, func() bool {
		_, metrics := p.get("/metrics")
		out, _, _ := runBinary(t, nil, "status", "--postgres-url", w.url, "--output", "json")
		return strings.Contains(metrics, `filtered_total{direction="reverse",pipeline="in"} 1`) && strings.Contains(out, `"filtered": 1`)
	})
}
