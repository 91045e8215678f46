package rows

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestOutline compares what an outline finds, however the payload is cut into parts, with
// what the builder makes of the whole payload.
func TestOutline(t *testing.T) {
	t.Parallel()
	long := strings.Repeat(`x\"{[\\`, 2000)
	for name, tc := range map[string]struct {
		payload string
		plain   bool
		ok      bool
		want    string // op, members, refresh, full
	}{
		"plain":          {`{"a": 1, "long": "` + long + `", "b" : {"c": [1, "}"]}, "d":null}`, true, true, ` {"a":1,"b":{"c": [1, "}"]},"d":null}  false`},
		"plain, empty":   {`{}`, true, true, ` {}  false`},
		"plain, string":  {`"` + long + `"`, true, false, ``},
		"plain, array":   {`[{"a": 1}]`, true, false, ``},
		"escaped name":   {`{"a\"": "\\", "b": "\u00e9"}`, true, true, ` {"a\"":"\\","b":"\u00e9"}  false`},
		"inserted":       {`{"v":1,"inserted":[{"id":7,"x":"` + long + `"}],"updated":[],"deleted":[]}`, false, true, `insert {"id":7}  false`},
		"jsonb":          {`{"v": 1, "deleted": [], "inserted": [{"id": 7, "x": "` + long + `"}], "refresh_id": "r-1", "full_refresh": true}`, false, true, `insert {"id":7} r-1 true`},
		"deleted":        {`{"v":1,"deleted":[{"id":7}]}`, false, true, `delete {"id":7}  false`},
		"updated":        {`{"v":1,"updated":[{"old":null,"new":{"id":7,"x":"` + long + `","y":{"old":1}}}]}`, false, true, `update {"id":7,"y":{"old":1}}  false`},
		"the row before": {`{"v":1,"updated":[{"new":{"id":7},"old":{"id":6}}]}`, false, false, `update {"id":7}  false`},
		"two":            {`{"v":1,"inserted":[{"id":7},{"id":8}]}`, false, false, ``},
		"two kinds":      {`{"v":1,"inserted":[{"id":7}],"deleted":[{"id":8}]}`, false, false, ``},
		"none":           {`{"v":1,"inserted":[]}`, false, false, ``},
		"version 2":      {`{"v":2,"inserted":[{"id":7}]}`, false, false, `insert {"id":7}  false`},
		"snapshot":       {`[{"id":7}]`, false, false, ``},
		"no JSON":        {`{"a": 1, b: 2, "c": "` + long + `"}`, true, false, ``},
	} {
		for _, size := range []int{1, 7, 5000, 1 << 20} {
			o := NewOutline(tc.plain)
			for rest := []byte(tc.payload); len(rest) > 0; rest = rest[min(size, len(rest)):] {
				_, _ = o.Write(append([]byte(nil), rest[:min(size, len(rest))]...))
			}
			e, from, to, ok := o.Event()
			got := ""
			if e.Members != nil {
				got = fmt.Sprintf("%s %s %s %t", e.Op, e.Members, e.RefreshID, e.Full)
			}
			if ok != tc.ok || got != tc.want {
				t.Errorf("%s in parts of %d: %q, %t; want %q, %t", name, size, got, ok, tc.want, tc.ok)
			}
			if !ok || tc.plain {
				continue
			}
			b := testBuilder()
			b.Discard()
			b.Row(testRow("7", tc.payload), 7)
			msgs, _ := b.Finish()
			if row := tc.payload[from:to]; row != string(msgs[0].Row) || e.Op != msgs[0].Op || e.Full != msgs[0].FullRefresh {
				t.Errorf("%s: event %.60s, want %.60s", name, row, msgs[0].Row)
			}
		}
	}
}

// FuzzOutline: of whatever JSON an outline finds an event in, that event is JSON, and the
// same that the builder finds.
func FuzzOutline(f *testing.F) {
	f.Add(`{"v":1,"inserted":[{"a":"\"]"}],"updated":[{"old":null,"new":{"b":[1]}}],"deleted":[]}`, 3)
	f.Add(`{"v": 1, "deleted": [ {"a" : {"c":"\\"}} ] }`, 1)
	f.Fuzz(func(t *testing.T, payload string, size int) {
		if !json.Valid([]byte(payload)) || size < 1 {
			return
		}
		o := NewOutline(false)
		for rest := []byte(payload); len(rest) > 0; rest = rest[min(size, len(rest)):] {
			_, _ = o.Write(rest[:min(size, len(rest))])
		}
		_, from, to, ok := o.Event()
		if !ok {
			return
		}
		b := testBuilder()
		b.Discard()
		b.Row(testRow("7", payload), 7)
		msgs, _ := b.Finish()
		if len(msgs) != 1 || msgs[0].Err != nil || string(msgs[0].Row) != payload[from:to] {
			t.Errorf("%q: event %q; the builder has %+v", payload, payload[from:to], msgs)
		}
	})
}
