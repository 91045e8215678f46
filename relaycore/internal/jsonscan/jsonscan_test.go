package jsonscan_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/jsonscan"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

var samples = []string{
	`{}`, `[]`, ` { "a" : 1 , "b":[1,2,{"c":null}] } `, `[1, "two", {"three":3}, [4], true, false, null, -0.5e+10]`,
	`{"a":1,"a":2}`, `{"a\u0062c":"x\ud83d\ude00y","\ud800":1}`, `"\ud83d\ude00\ud83d\n\u00e9\"\\\/"`, `"` + strings.Repeat("x", 40) + `"`,
	"\"\xff\xfe\"", "{\"\xff\":1}", `[1,]`, `{,}`, `{"a":1,}`, `{"a"}`, `01`, `1.`, `1e`, `-`, `tru`, `nul`, `"\x"`, `"\u12g4"`, "\"a\nb\"", `[`, `{`, `"`,
	strings.Repeat("[", 9999) + strings.Repeat("]", 9999), strings.Repeat("[", 10001) + strings.Repeat("]", 10001), `[1] 2`, ``, ` `, `{"a":1}x`, `12345678901234567890`,
	"\"ääääääääääääääääääää\"", `{"tags":["x"],"obj":{"tags":[]}}`,
}

func FuzzAgainstEncodingJSON(f *testing.F) {
	for _, s := range samples {
		f.Add([]byte(s), "a")
		f.Add([]byte(s), "abc")
		f.Add([]byte(s), "\ufffd")
		f.Add([]byte(s), "\xff")
	}
	f.Fuzz(func(t *testing.T, text []byte, name string) { compare(t, text, name) })
}

func TestSamples(t *testing.T) {
	t.Parallel()
	for _, s := range samples {
		for _, name := range []string{"a", "abc", "b", "tags", "\ufffd", "\xff"} {
			compare(t, []byte(s), name)
		}
	}
}

// compare holds every function against encoding/json.
func compare(t *testing.T, text []byte, name string) {
	t.Helper()
	valid := json.Valid(text)
	if got := jsonscan.Valid(text); got != valid {
		t.Fatalf("Valid(%.200q) = %v, want %v", text, got, valid)
	}

	var wantList []json.RawMessage
	err := json.Unmarshal(text, &wantList)
	isList := err == nil && wantList != nil
	list, err := jsonscan.Elements(nil, text)
	if isList != (err == nil) || (err == nil && len(list) != len(wantList)) {
		t.Fatalf("Elements(%.200q) = %q, %v, want %q", text, list, err, wantList)
	}
	if err == nil {
		for i := range list {
			if !bytes.Equal(list[i], wantList[i]) {
				t.Fatalf("Elements(%.200q)[%d] = %q, want %q", text, i, list[i], wantList[i])
			}
		}
	}

	var wantMap map[string]json.RawMessage
	err = json.Unmarshal(text, &wantMap)
	isObject := err == nil && wantMap != nil
	members, err := jsonscan.Members(nil, text)
	if isObject != (err == nil) {
		t.Fatalf("Members(%.200q) = %v, want an object: %v", text, err, isObject)
	}
	if err == nil {
		got := make(map[string]string)
		for _, m := range members {
			got[string(jsonscan.AppendText(nil, m.Name))] = string(m.Value)
		}
		for k, v := range wantMap {
			if got[k] != string(v) {
				t.Fatalf("Members(%.200q)[%q] = %q, want %q", text, k, got[k], v)
			}
		}
		if len(got) != len(wantMap) {
			t.Fatalf("Members(%.200q) has %d names, want %d", text, len(got), len(wantMap))
		}
	}

	value, ok := jsonscan.Field(text, name)
	want, wantOK := wantMap[name]
	wantOK = wantOK && isObject
	if ok != wantOK || (ok && !bytes.Equal(value, want)) {
		t.Fatalf("Field(%.200q, %q) = %q, %v, want %q, %v", text, name, value, ok, want, wantOK)
	}
	values := [][]byte{[]byte("stale"), nil}
	err = jsonscan.Fields(text, []string{name, "zz"}, values)
	if (err == nil) != isObject || (err == nil && (values[0] != nil) != ok) {
		t.Fatalf("Fields(%.200q) = %q, %v", text, values, err)
	}

	lists := [][][]byte{{[]byte("stale")}, nil}
	err = jsonscan.Split(text, []string{name, "zz"}, values, lists)
	if (err == nil) != isObject || (err == nil && (!bytes.Equal(values[0], want) || (values[0] != nil) != ok)) {
		t.Fatalf("Split(%.200q) = %q, %v, want %q", text, values, err, want)
	}
	if array, errArray := jsonscan.Elements(nil, want); err == nil && ok && errArray == nil && !slices.EqualFunc(lists[0], array, bytes.Equal) {
		t.Fatalf("Split(%.200q) took %q out of %q, want %q", text, lists[0], want, array)
	}

	var s string
	if valid && len(bytes.TrimLeft(text, " \t\r\n")) == len(text) && text[0] == '"' && json.Unmarshal(text, &s) == nil {
		if got := jsonscan.AppendText(nil, text); string(got) != s {
			t.Fatalf("AppendText(%q) = %q, want %q", text, got, s)
		}
	}
}

func TestFirst(t *testing.T) {
	for text, want := range map[string]string{`{"a":1,"b":2}`: "2", `{"b":[3], "b":4}`: "[3]", `{"a":{"b":5}}`: "", `[]`: "", ``: ""} {
		got, ok := jsonscan.First([]byte(text), "b")
		if string(got) != want || ok != (want != "") {
			t.Errorf("First(%s) = %s, %v; want %s", text, got, ok, want)
		}
	}
}

func TestAppendText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`"a b"`: "a b", `null`: "", `12`: "12", `{"a": 1}`: `{"a": 1}`, `"\u00e4\n"`: "ä\n", `true`: "true", `"open`: `"open`, ``: ``,
	} {
		if got := string(jsonscan.AppendText(nil, []byte(in))); got != want {
			t.Errorf("AppendText(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestErrorsSayWhere(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`[1,}`: `invalid character '}' in JSON at byte 3`, `[1`: "JSON ends too early", `{"a":1}`: "not a JSON array", `x`: `invalid character 'x' in JSON at byte 0`,
	} {
		if _, err := jsonscan.Elements(nil, []byte(in)); err == nil || err.Error() != want {
			t.Errorf("Elements(%q) = %v, want %q", in, err, want)
		}
	}
}

func TestAllocations(t *testing.T) {
	text := payload(100)
	var list [][]byte
	var members []jsonscan.Member
	values := make([][]byte, 2)
	names := []string{"note", "no_such"}
	dst := make([]byte, 0, 256)
	n := testing.AllocsPerRun(20, func() {
		members, _ = jsonscan.Members(members[:0], text)
		list, _ = jsonscan.Elements(list[:0], members[1].Value)
		for _, row := range list {
			v, _ := jsonscan.Field(row, "customer")
			_ = jsonscan.Fields(row, names, values)
			dst = jsonscan.AppendText(dst[:0], v)
			dst = jsonscan.AppendText(dst[:0], []byte(`"\u00e4 \"quoted\""`))
		}
	})
	if n != 0 {
		t.Fatalf("%v allocations, want none", n)
	}
}

// payload is like limits.md's: rows of about 274 bytes as jsonb prints them.
func payload(rows int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"v": 1, "inserted": [`)
	for i := range rows {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, `{"id": %d, "note": "The quick brown fox jumps over the lazy dog %d", "total": %d.50, "status": "shipped", "customer": "customer-%06d", `+
			`"created_at": "2026-11-22T10:11:12.123456+00:00", "updated_at": "2026-11-22T10:11:12.123456+00:00", "address": {"city": "Oslo", "zip": "0150"}, "tags": ["a", "b"]}`,
			i, i, i, i)
	}
	b.WriteString(`], "deleted": []}`)
	return b.Bytes()
}

func BenchmarkSplit(b *testing.B) {
	for _, rows := range []int{1, 500} {
		text := payload(rows)
		b.Run(fmt.Sprintf("jsonscan/rows=%d", rows), func(b *testing.B) {
			var list [][]byte
			var members []jsonscan.Member
			defer relaytest.ReportCPU(b)()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				members, _ = jsonscan.Members(members[:0], text)
				list = list[:0]
				list, _ = jsonscan.Elements(list, members[1].Value)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(list)), "ns/delta")
		})
		b.Run(fmt.Sprintf("handwritten/rows=%d", rows), func(b *testing.B) {
			n := 0
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				n = naiveSplit(text)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/delta")
		})
		b.Run(fmt.Sprintf("json.Valid/rows=%d", rows), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				json.Valid(text)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(rows), "ns/delta")
		})
	}
}

// naiveSplit is the splitter to measure against: it counts braces and trusts its
// input.
func naiveSplit(p []byte) int {
	i := bytes.Index(p, []byte(`"inserted": [`)) + len(`"inserted": [`)
	n, depth, inString := 0, 0, false
	for ; i < len(p); i++ {
		c := p[i]
		if inString {
			switch c {
			case '\\':
				i++
			case '"':
				inString = false
			}
			continue
		}
		switch c {
		case '"':
			inString = true
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return n
			}
			if depth--; depth == 0 {
				n++
			}
		}
	}
	return n
}
