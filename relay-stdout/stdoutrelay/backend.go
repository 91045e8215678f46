package stdoutrelay

import (
	"context"
	"os"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Backend returns the backend for standard output, standard input and files.
func Backend() relay.Backend {
	input, outs := newStdin(os.Stdin), newOutputs(os.Stdout)
	return relay.Backend{
		Name:    "stdout",
		Aliases: []string{"file", "stdin"},
		Sink: relaycfg.Sink(sinkDefaults(), func(_ context.Context, _ relay.Env, cfg sinkConfig) (relay.Sink, error) {
			return newSink(cfg, outs)
		}),
		Source: relaycfg.Source(sourceDefaults(), func(_ context.Context, env relay.Env, cfg sourceConfig) (relay.Source, error) {
			return newSource(cfg, env, input)
		}),
		Copies:   3, // the row, its body, and the lines that are written
		Refusals: refusals,
		SinkGuarantee: relay.Guarantee{
			Delivery: "effectively once into a file, with format envelope or cloudevents; at least once otherwise",
			Dedup:    "the file's tail is read back after a crash",
			Order:    "total",
			Weakest:  "a file system that loses what was synced; standard output, which cannot be read back",
		},
		SourceGuarantee: relay.Guarantee{
			Delivery: "at least once from a file; standard input is gone once read",
			Dedup:    "the envelope's dedup_key, else file name and offset",
			Order:    "as in the file",
			Weakest:  "a file that is overwritten with the same bytes, or cut before it was read",
		},
	}
}
