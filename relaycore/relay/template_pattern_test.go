package relay_test

import (
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func TestTemplatePattern(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                        "",
		"fixed":                   "fixed",
		"a.{op}.b":                "a.*.b",
		"{row.a.b}{outbox_id}":    "**",
		"é*[1]{{x}}:{refresh_id}": `é\*\[1]{x}:*`,
	} {
		tmpl, err := relay.ParseTemplate(text)
		if got := tmpl.Pattern("*", `*?[\`); err != nil || got != want {
			t.Errorf("Pattern of %q = %q, %v; want %q", text, got, err, want)
		}
	}
}
