package rows

import (
	"fmt"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

var oldForm = newIDs(&table.Table{Name: "outbox_orders"}, IDs{})

func testBuilder() *Builder {
	l := &Layout{id: 0, payload: 1, created: 2, refresh: 3, claim: 4, op: -1, key: -1, headers: -1, eventID: -1, size: -1}
	return &Builder{source: source{stream: "orders", qualified: "pgtrickle.outbox_orders"}, ids: oldForm, layout: l}
}

func testRow(id, payload string) [][]byte {
	v := [][]byte{[]byte(id), []byte(payload), {0, 2, 0xe2, 0x4f, 0x3b, 0, 0, 0}, nil, []byte("f")}
	if payload == "" {
		v[1] = nil
	}
	return v
}

func TestDecode(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		payload string
		claim   bool
		want    string // op, full refresh, row, before; one per message
		wantErr string
	}{
		"A: the whole stream table":   {payload: `[{"id": 1, "__pgt_row_id": 5}, {"id": 2}]`, want: `insert full {"id": 1, "__pgt_row_id": 5}|insert full {"id": 2}`},
		"A: empty":                    {payload: `[]`},
		"C: a delta":                  {payload: `{"v":1,"inserted":[{"a":1}],"deleted":[{"b":2},{"b":3}]}`, want: `insert {"a":1}|delete {"b":2}|delete {"b":3}`},
		"C: a full refresh":           {payload: `{"full_refresh": true, "v": 1, "inserted": [{"a": 1}], "deleted": [{"a": 0}]}`, want: `insert full {"a": 1}|delete {"a": 0}`},
		"C: nothing":                  {payload: `{"v":1,"inserted":[],"deleted":[]}`},
		"ours: updated":               {payload: `{"v":1,"inserted":[{"a":1}],"updated":[{"old":{"a":1},"new":{"a":2}},{"old":null,"new":{"a":3}}],"deleted":[{"a":2}]}`, want: `insert {"a":1}|update {"a":2} before {"a":1}|update {"a":3}|delete {"a":2}`},
		"E: counts only":              {payload: ``},
		"unknown version":             {payload: `{"v":2,"inserted":[{"a":1}]}`, wantErr: "row 7 of pgtrickle.outbox_orders: unsupported outbox payload version 2"},
		"no version":                  {payload: `{"inserted":[{"a":1}]}`, wantErr: "unsupported outbox payload version missing"},
		"F: a summary of 0.46":        {payload: `{"v":1,"refresh_id":null,"inserted":3,"deleted":0,"source":"public.orders"}`, wantErr: `"inserted": not a JSON array`},
		"a version and nothing else":  {payload: `{"v":1}`, wantErr: `none of "inserted"`},
		"not an object":               {payload: `{"v":1,"inserted":[1]}`, wantErr: "a row is 1 and not an object"},
		"A: not an object":            {payload: `[1]`, wantErr: "a row is 1 and not an object"},
		"a scalar":                    {payload: `"x"`, wantErr: "not a JSON object"},
		"updated without new":         {payload: `{"v":1,"updated":[{"old":{}}]}`, wantErr: `no "new"`},
		"claim check, unknown header": {payload: `{"v":3,"claim_check":true}`, claim: true, wantErr: "version 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := testBuilder()
			b.Discard()
			row := testRow("7", tc.payload)
			if tc.claim {
				row[4] = []byte("t")
			}
			if !b.Row(row, 7) {
				t.Fatal("taken for a claim check")
			}
			msgs, slots := b.Finish()
			var got []string
			for i, m := range msgs {
				if m.ID != fmt.Sprintf("outbox_orders:7:%d", i) || m.OutboxID != 7 || m.StreamTable != "orders" || m.Token != any(&slots[i]) || m.Time.IsZero() {
					t.Errorf("message %d = %+v", i, m)
				}
				if m.Err != nil {
					if tc.wantErr == "" || !strings.Contains(m.Err.Error(), tc.wantErr) || !relay.IsPermanent(m.Err) || string(m.Body) != tc.payload || len(msgs) != 1 {
						t.Fatalf("message = %+v, want error with %q and the payload as its body", m, tc.wantErr)
					}
					return
				}
				s := m.Op
				if m.FullRefresh {
					s += " full"
				}
				s += " " + string(m.Row)
				if m.Before != nil {
					s += " before " + string(m.Before)
				}
				got = append(got, s)
			}
			if tc.wantErr != "" || strings.Join(got, "|") != tc.want {
				t.Fatalf("decoded %q, want %q %s", strings.Join(got, "|"), tc.want, tc.wantErr)
			}
			if n := len(slots); n == 0 || !slots[n-1].End || (len(msgs) == 0 && !slots[0].Settled) {
				t.Fatalf("slots = %+v, want the last to end the row", slots)
			}
		})
	}
}

func TestClaimCheckHeaders(t *testing.T) {
	t.Parallel()
	for payload, full := range map[string]bool{
		``: true, `{"v":1,"claim_check":true,"inserted_count":3}`: false, `{"v":1,"claim_check":true,"full_refresh":true,"refresh_id":"7f1b"}`: true,
	} {
		b := testBuilder()
		b.Discard()
		row := testRow("9", payload)
		row[4] = []byte("t")
		if b.Row(row, 9) || b.Claim() == nil || b.Claim().full != full {
			t.Errorf("row(%q): claim = %+v, want full %v", payload, b.Claim(), full)
		}
	}
}

// TestAllocations holds reading and splitting to one allocation an event.
func TestAllocations(t *testing.T) {
	payload := `{"v": 1, "inserted": [{"id": 1, "note": "` + strings.Repeat("x", 200) + `"}], "deleted": []}`
	row := testRow("1234567", payload)
	b := testBuilder()
	const rows = 1000
	n := testing.AllocsPerRun(10, func() {
		b.Discard()
		for range rows {
			b.Row(row, 1234567)
		}
		b.Finish()
	})
	if n/rows > 0.1 {
		t.Errorf("%.3f allocations an event, want far less than one", n/rows)
	}
	t.Logf("%.3f allocations an event", n/rows)
}

func FuzzDecode(f *testing.F) {
	f.Add(`{"v":1,"inserted":[{"a":1}],"updated":[{"old":{},"new":{}}],"deleted":[]}`, false)
	f.Add(`[{"a":1}]`, true)
	f.Fuzz(func(t *testing.T, payload string, claim bool) {
		b := testBuilder()
		b.Discard()
		row := testRow("7", payload)
		if claim {
			row[4] = []byte("t")
		}
		if !b.Row(row, 7) {
			return
		}
		msgs, slots := b.Finish()
		if len(slots) == 0 || !slots[len(slots)-1].End {
			t.Fatalf("row(%q) has no end", payload)
		}
		for _, m := range msgs {
			if m.ID == "" || (m.Err == nil) == (m.Row == nil) {
				t.Fatalf("row(%q): message %+v", payload, m)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	payload := `{"v": 1, "inserted": [{"id": 1, "note": "` + strings.Repeat("x", 230) + `"}], "deleted": []}`
	row := testRow("1234567", payload)
	build := testBuilder()
	defer relaytest.ReportCPU(b)()
	for i := 0; b.Loop(); i++ {
		if i%1000 == 0 {
			build.Finish()
			build.Discard()
		}
		build.Row(row, 1234567)
	}
}

// TestGivenByTheRow: the messages of a row get its headers, key and event id. A row
// without them costs no allocation.
func TestGivenByTheRow(t *testing.T) { // counts allocations, so not in parallel
	l := &Layout{id: 0, payload: 1, created: 2, refresh: 3, claim: 4, op: -1, key: 5, headers: 6, eventID: 7, size: -1}
	b := &Builder{source: source{stream: "orders", qualified: "pgtrickle.outbox_orders"}, ids: oldForm, layout: l}
	row := func(payload, key, headers, eventID string) [][]byte {
		v := append(testRow("7", payload), nil, nil, nil)
		for i, s := range []string{key, headers, eventID} {
			if s != "" {
				v[5+i] = []byte(s)
			}
		}
		return v
	}
	for name, tc := range map[string]struct {
		row  [][]byte
		want string
	}{
		"all": {
			row(`{"v":1,"inserted":[{"a":1}]}`, "k", `{"traceparent": "00-1", "tenant": "ä"}`, "e-1"), "e-1 key=k [{traceparent 00-1} {tenant ä}]",
		},
		"none":           {row(`{"v":1,"inserted":[{"a":1}]}`, "", "", ""), "outbox_orders:7:0 key= []"},
		"several events": {row(`{"v":1,"inserted":[{"a":1},{"a":2}]}`, "k", `{"x": "y"}`, ""), "outbox_orders:7:0 key=k [{x y}]|outbox_orders:7:1 key=k [{x y}]"},
		"bad headers":    {row(`{"v":1,"inserted":[{"a":1}]}`, "", `[1]`, ""), "outbox_orders:7:0 key= [] row 7 of pgtrickle.outbox_orders: headers: not a JSON object"},
	} {
		b.Discard()
		b.Row(tc.row, 7)
		msgs, _ := b.Finish()
		var got []string
		for _, m := range msgs {
			s := fmt.Sprintf("%s key=%s %v", m.ID, m.Key, m.Headers)
			if m.Err != nil {
				s += " " + m.Err.Error()
			}
			got = append(got, s)
		}
		if strings.Join(got, "|") != tc.want {
			t.Errorf("%s: %s\nwant %s", name, strings.Join(got, "|"), tc.want)
		}
	}

	plain, bare := row(`{"v":1,"inserted":[{"a":1}]}`, "", "", ""), testBuilder()
	allocs := func(b *Builder, v [][]byte) float64 {
		return testing.AllocsPerRun(100, func() {
			b.Discard()
			for range 100 {
				b.Row(v, 7)
			}
			b.Finish()
		})
	}
	if with, without := allocs(b, plain), allocs(bare, testRow("7", `{"v":1,"inserted":[{"a":1}]}`)); with > without {
		t.Errorf("a row that uses none of the columns costs %v allocations, one of a table without them %v", with, without)
	}
}
