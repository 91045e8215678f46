package relaycmd

import (
	"bytes"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
)

const hostileText = "k\x1b]52;c;aGk=\a\x1b[1A\x1b[2K\nforged\trow\u009b31m\u202e\x9b"

// A key or an error of a far end writes no row of its own, and reaches no terminal raw.
func TestOutputQuotesControlCharacters(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &program{stdout: &out}
	p.printPreviews([]preview{{
		ID: hostileText, Subject: hostileText, Key: hostileText, Headers: map[string]string{hostileText: hostileText}, Error: hostileText,
		Body: []byte("{\n\"a\": \"\u009b31m\u202e\"}"),
	}})
	if got := strings.Count(out.String(), "\n"); got != 6 {
		t.Errorf("preview prints %d lines, want 6:\n%q", got, out.String())
	}
	err := p.printStatus(&statusReport{
		Pipelines: []pipelineStatus{{Name: hostileText, Backend: hostileText, State: hostileText, Owner: hostileText, Error: hostileText}},
		Instances: []observe.InstanceStatus{{ID: hostileText, Hostname: hostileText, Backends: []string{hostileText}}},
		Warnings:  []string{hostileText},
	})
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if line = strings.TrimSuffix(line, "\n"); !isPrintable(line) || strings.HasPrefix(line, "forged") {
			t.Errorf("prints the raw line %q", line)
		}
	}
	if got := printable("grün ☕", 1)[0]; got != "grün ☕" {
		t.Errorf("printable changes plain text: %s", got)
	}
}
