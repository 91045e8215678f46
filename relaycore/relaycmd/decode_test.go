package relaycmd

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// A command decodes the configurations that it needs, each once.
func TestCommandsDecodeOnce(t *testing.T) {
	w := newWorld(t)
	w.insert(t, 1, 3)
	w.pipeline(t, "one", "")
	w.pipeline(t, "two", "")

	decoded := 0
	backend := spoolBackend()
	decode := backend.Sink.Decode
	backend.Sink.Decode = func(raw json.RawMessage) (any, error) {
		decoded++
		return decode(raw)
	}
	for command, want := range map[string]int{
		"check":                      2,
		"check one":                  1,
		"status":                     2,
		"preview one":                1,
		"replay one --from 1 --to 3": 1,
		"verify one":                 1,
		"dlq list":                   0,
	} {
		var out bytes.Buffer
		decoded = 0
		p := &program{
			name: "test-relay", backends: []relay.Backend{backend}, args: append(strings.Fields(command), "--postgres-url", w.url),
			stdout: &out, stderr: &out,
		}
		if code := run(t.Context(), p); code != 0 || decoded != want {
			t.Errorf("%s ended with %d and decoded %d configurations, want %d:\n%s", command, code, decoded, want, out.String())
		}
	}
}
