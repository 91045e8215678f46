package stdoutrelay

import (
	"context"
	"encoding/json"
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
		NewSink: func(_ context.Context, _ relay.Env, raw json.RawMessage) (relay.Sink, error) {
			cfg := sinkDefaults()
			if err := relaycfg.Decode(raw, &cfg); err != nil {
				return nil, err
			}
			return newSink(cfg, outs)
		},
		NewSource: func(_ context.Context, env relay.Env, raw json.RawMessage) (relay.Source, error) {
			cfg := sourceDefaults()
			if err := relaycfg.Decode(raw, &cfg); err != nil {
				return nil, err
			}
			return newSource(cfg, env, input)
		},
		SinkConfig:   sinkDefaults(),
		SourceConfig: sourceDefaults(),
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
