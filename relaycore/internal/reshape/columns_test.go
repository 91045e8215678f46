package reshape_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/reshape"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const salt = `"salt": "0123456789abcdef"`

func columns(t testing.TB, config string) *reshape.Columns {
	t.Helper()
	var c reshape.ColumnsConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		t.Fatal(err)
	}
	return reshape.NewColumns(c)
}

func TestColumns(t *testing.T) {
	t.Parallel()
	const row = `{"id": 1e400, "em\u0061il":"ada@example.org", "card" : "4111111111111111", "note": null, "deep": {"email": "x"}}`
	// By openssl dgst -sha256 -hmac 0123456789abcdef.
	const ada = "hmac-sha256:5a2c"
	for name, tc := range map[string]struct{ config, row, want string }{
		"include":           {`{"include": ["id", "email"]}`, row, `{"id": 1e400, "em\u0061il": "ada@example.org"}`},
		"exclude":           {`{"exclude": ["email", "deep"]}`, row, `{"id": 1e400, "card": "4111111111111111", "note": null}`},
		"null":              {`{"mask": {"email": "null"}, "include": ["id", "email"]}`, row, `{"id": 1e400, "em\u0061il": null}`},
		"last4":             {`{"mask": {"card": "last4"}, "include": ["card"]}`, row, `{"card": "****1111"}`},
		"last4 of a short":  {`{"mask": {"card": "last4"}}`, `{"card": "1234567"}`, `{"card": "****"}`},
		"last4 of a number": {`{"mask": {"card": "last4"}}`, `{"card": 4111111111111111}`, `{"card": "****1111"}`},
		"last4 of a quote":  {`{"mask": {"card": "last4"}}`, `{"card": "12345\u00e4\"\n\\"}`, `{"card": "****ä\"\n\\"}`},
		"last4 of an array": {`{"mask": {"card": "last4"}}`, `{"card": ["12345678"]}`, `{"card": "****"}`},
		"a null stays":      {`{"mask": {"note": "hash"}, "include": ["note"], ` + salt + `}`, row, `{"note": null}`},
		"repeated":          {`{"mask": {"a": "null"}}`, `{"a":1,"b":2,"a":3}`, `{"a": null, "b": 2, "a": null}`},
		"nothing to do":     {`{"exclude": ["x"]}`, row, row},
		"nothing left":      {`{"include": ["x"]}`, row, `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := columns(t, tc.config)
			got, err := c.Row([]byte(tc.row))
			if err != nil || string(got) != tc.want {
				t.Fatalf("got %s, %v\nwant %s", got, err, tc.want)
			}
			if again, err := c.Row(got); err != nil || string(again) != tc.want {
				t.Errorf("applied again: %s, %v: a dead letter would change when it is delivered", again, err)
			}
		})
	}
	c := columns(t, `{"mask": {"email": "hash"}, "include": ["email"], `+salt+`}`)
	got, _ := c.Row([]byte(row))
	other, _ := columns(t, `{"mask": {"email": "hash"}, "include": ["email"], "salt": "0123456789abcdeX"}`).Row([]byte(row))
	if again, _ := c.Row(got); len(got) != len(`{"em\u0061il": "`)+len(ada)-4+64+2 || string(again) != string(got) || string(other) == string(got) {
		t.Errorf("hash = %s, applied again %s, with another salt %s", got, again, other)
	}
}

func TestColumnsConfig(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]string{
		`{"include": ["a"], "exclude": ["b"]}`:            `key "exclude": cannot be combined with "include"`,
		`{"mask": {"a": "hashh"}}`:                        `key "mask.a": unknown mask "hashh"; must be one of null, hash, last4`,
		`{"mask": {"a": "hash"}}`:                         `key "salt": mask hash needs a secret of at least 16 bytes`,
		`{"mask": {"a": "null"}, "exclude": ["a"]}`:       `key "mask.a": the column is not sent`,
		`{"mask": {"a": "null"}, "include": ["b"]}`:       `key "mask.a": the column is not sent`,
		`{"excluded": ["a"]}`:                             `unknown key; did you mean "exclude"?`,
		`{"mask": {"a": "hash"}, "salt": "tooshortabit"}`: `at least 16 bytes`,
	} {
		var c reshape.ColumnsConfig
		if err := json.Unmarshal([]byte(config), &c); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "tooshort") {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
}

// A key or header that came beside the row is hidden if it is a hidden value. Any other
// key stays, because messages keep their order by it.
func TestColumnsBesideTheRow(t *testing.T) {
	t.Parallel()
	shared := []relay.Header{{Name: "mail", Value: "ada@example.org"}, {Name: "trace", Value: "1"}}
	m := relay.Message{
		Row: []byte(`{"id": 7, "email": "ada@example.org", "version": 7}`), Before: []byte(`{"email": "old@example.org"}`),
		Key: "ada@example.org", Headers: shared,
	}
	c := columns(t, `{"mask": {"email": "last4"}, "exclude": ["version"]}`)
	c.Apply(&m)
	if m.Key != "****.org" || m.Headers[0].Value != "****.org" || m.Headers[1].Value != "1" || string(m.Before) != `{"email": "****.org"}` {
		t.Errorf("message = %+v", m)
	}
	if shared[0].Value != "ada@example.org" {
		t.Error("the headers of another message changed")
	}
	if m = (relay.Message{Row: []byte(`{"id": 7, "version": 7}`), Key: "7"}); true {
		if c.Apply(&m); m.Key != "7" {
			t.Errorf("key = %q, want the id, which is sent", m.Key)
		}
	}
}

// What cannot be read has no columns, and may hold any value.
func TestColumnsWithhold(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]relay.Message{
		"unreadable": {ID: "o:1:0", Body: []byte(`canary`), Err: relay.Permanent(errors.New("a row is canary"))},
		"an array":   {ID: "o:1:0", Row: []byte(`[{"email": "canary"}]`), Key: "canary"},
		"before":     {ID: "o:1:0", Row: []byte(`{}`), Before: []byte(`"canary"`)},
	} {
		columns(t, `{"exclude": ["email"]}`).Apply(&m)
		all, _ := json.Marshal([]string{m.Key, string(m.Row), string(m.Before), string(m.Body), m.Err.Error()})
		if strings.Contains(string(all), "canary") || !relay.IsPermanent(m.Err) || !strings.Contains(m.Err.Error(), "withheld") {
			t.Errorf("%s: %s", name, all)
		}
	}
}

// Of a row that is too large for the memory only some members are read.
func TestColumnsOfALargeRow(t *testing.T) {
	t.Parallel()
	tooLarge := relay.Permanent(errors.New("row 7 has 1073741824 bytes"))
	m := relay.Message{ID: "o:1:0", Row: []byte(`{"id": 1, "email": "canary"}`), Err: tooLarge}
	columns(t, `{"exclude": ["email"]}`).Apply(&m)
	if string(m.Row) != `{"id": 1}` || !errors.Is(m.Err, tooLarge) {
		t.Errorf("row %s, %v", m.Row, m.Err)
	}
}

func BenchmarkColumns(b *testing.B) {
	row := []byte(`{"id": 1234567, "email": "ada@example.org", "note": "` + strings.Repeat("x", 200) + `"}`)
	for _, mask := range []string{"null", "hash", "last4"} {
		b.Run(mask, func(b *testing.B) {
			c := columns(b, `{"mask": {"email": "`+mask+`"}, `+salt+`}`)
			b.ReportAllocs()
			for b.Loop() {
				m := relay.Message{Row: row}
				c.Apply(&m)
			}
		})
	}
}
