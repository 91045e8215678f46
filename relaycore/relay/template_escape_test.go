package relay_test

import (
	"net/url"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func TestTemplateAppendEscaped(t *testing.T) {
	t.Parallel()
	tmpl, err := relay.ParseTemplate("https://h/{op}/{row.id}?q={row.id}#x y")
	if err != nil {
		t.Fatal(err)
	}
	m := relay.Message{Op: relay.OpInsert, Row: []byte(`{"id":"a/b?c"}`)}
	got, err := tmpl.AppendEscaped(nil, &m, url.QueryEscape)
	if want := "https://h/insert/a%2Fb%3Fc?q=a%2Fb%3Fc#x y"; err != nil || string(got) != want {
		t.Errorf("AppendEscaped = %s, %v; want %s", got, err, want)
	}
	got, err = tmpl.Append(nil, &m)
	if want := "https://h/insert/a/b?c?q=a/b?c#x y"; err != nil || string(got) != want {
		t.Errorf("Append = %s, %v; want %s", got, err, want)
	}
}
