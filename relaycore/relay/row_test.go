package relay_test

import (
	"encoding/json"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// renderField renders {row.NAME}, or returns false if the row has no such field.
func renderField(t testing.TB, row, name string) (string, bool) {
	t.Helper()
	template, err := relay.ParseTemplate("{row." + name + "}")
	if err != nil {
		t.Skip(err)
	}
	text, err := template.Render(&relay.Message{ID: "1", Row: []byte(row)})
	return text, err == nil
}

// asText is what a decoded JSON value means as text.
func asText(raw json.RawMessage) string {
	var s *string
	if json.Unmarshal(raw, &s) != nil {
		return string(raw)
	}
	if s == nil {
		return ""
	}
	return *s
}

func TestRowFields(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		row, name, want string
		ok              bool
	}{
		{`{"a":1,"b":"x"}`, "b", "x", true},
		{"\n{ \"a\" :\t[1, {\"b\":2}] , \"b\" : true }\r\n", "b", "true", true},
		{`{"a":{"b":1},"c":[{"b":2}]}`, "b", "", false},
		{`{"a":"} \" ,\"b\":1","b":2}`, "b", "2", true},
		{`{"b":1,"b":2}`, "b", "2", true},
		{`{"\u0062":1}`, "b", "1", true},
		{`{"b":null}`, "b", "", true},
		{`{"b":"null"}`, "b", "null", true},
		{`{"b":""}`, "b", "", true},
		{`{"b":-1.5e3}`, "b", "-1.5e3", true},
		{`{"b":[1, 2]}`, "b", "[1, 2]", true},
		{`{"b":"a\u00e6\ud83d\ude00\n\\"}`, "b", "aæ😀\n\\", true},
		{`{"b":"\ud83d"}`, "b", "\ufffd", true},
		{"{\"b\":\"a\xff\"}", "b", "a\ufffd", true},
		{`{}`, "b", "", false},
		{`[{"b":1}]`, "b", "", false},
		{`"b"`, "b", "", false},
		{``, "b", "", false},
		{`{"b"`, "b", "", false},
		{`{"b":`, "b", "", false},
		{`{"b":1`, "b", "", false},
		{`{"b":"x`, "b", "", false},
		{`{"b":{"c":1}`, "b", "", false},
		{`{"b":1,`, "b", "", false},
		{`{"b" 1}`, "b", "", false},
	} {
		got, ok := renderField(t, tc.row, tc.name)
		if got != tc.want || ok != tc.ok {
			t.Errorf("{row.%s} of %q = %q, %t, want %q, %t", tc.name, tc.row, got, ok, tc.want, tc.ok)
		}
	}
}

// A field of a valid row renders as what encoding/json decodes. Of any other text
// nothing is asked but to end.
func FuzzRowField(f *testing.F) {
	for _, row := range []string{
		`{"a":1,"b":"x\n\u00e6"}`, `{"a":{"b":[1,"}"]},"b":null,"c":-1e9}`, "{\"a\":\"\xff\",\"\\u0062\":true}", `{"a":1,"a":2,}`, `[`, `{"`,
	} {
		f.Add(row, "a")
		f.Add(row, "b")
	}
	f.Fuzz(func(t *testing.T, row, name string) {
		got, ok := renderField(t, row, name)
		var members map[string]json.RawMessage
		if json.Unmarshal([]byte(row), &members) != nil {
			return
		}
		raw, has := members[name]
		if has != ok || has && got != asText(raw) {
			t.Errorf("{row.%s} of %q = %q, %t, want %q, %t", name, row, got, ok, asText(raw), has)
		}
	})
}
