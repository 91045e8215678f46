package table

import "testing"

func TestProgressOfACursor(t *testing.T) {
	t.Parallel()
	now := current{table: 10, file: 11, sequences: []uint32{12, 20}}
	for name, tc := range map[string]struct {
		checkpoint string
		want       int64
	}{
		"no checkpoint":                 {``, 90},
		"one without a safe id":         {`{}`, 90},
		"of this table":                 {`{"of":{"table":10,"file":11,"sequence":12},"safe":70}`, 70},
		"ahead of the last id":          {`{"of":{"table":10,"file":11,"sequence":12},"safe":95}`, 90},
		"before the first id":           {`{"of":{"table":10,"file":11,"sequence":12},"safe":-9223372036854775808}`, 0},
		"of an earlier table":           {`{"of":{"table":9,"file":11,"sequence":12},"safe":70}`, 0},
		"truncated since":               {`{"of":{"table":10,"file":8,"sequence":12},"safe":70}`, 70},
		"truncated, with restarted ids": {`{"of":{"table":10,"file":8,"sequence":7},"safe":70}`, 0},
		"truncated, without a sequence": {`{"of":{"table":10,"file":8},"safe":70}`, 70},
	} {
		if got, err := now.progress(90, []byte(tc.checkpoint)); got != tc.want || err != nil {
			t.Errorf("%s: progress = %d, %v, want %d", name, got, err, tc.want)
		}
	}
	if _, err := now.progress(90, []byte(`{`)); err == nil {
		t.Error("a broken checkpoint is no error")
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][2]string{
		"orders":            {"", "orders"},
		"public.orders":     {"public", "orders"},
		`"a.b"."c""d"`:      {"a.b", `c"d`},
		"public.orders.old": {"public", "orders.old"},
		"":                  {"", ""},
	} {
		if schema, rel := split(name); schema != want[0] || rel != want[1] {
			t.Errorf("split(%q) = %q, %q, want %q", name, schema, rel, want)
		}
	}
}
