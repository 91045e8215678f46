package stdoutrelay

import (
	"context"
	"encoding/json"
	"os"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

type sinkConfig struct {
	Format      string        `json:"format" relay:"enum=jsonl|json_pretty|csv|raw" doc:"How messages are laid out: jsonl and json_pretty write the body, csv a row with id, subject, op, key, outbox id, time and body, raw the body's bytes and nothing else."`
	Path        string        `json:"path" relay:"alias=output" doc:"File to append to; standard output by default."`
	RotateBytes relaycfg.Size `json:"rotate_bytes" relay:"min=0" doc:"Size beyond which the file becomes path.1 and a new one begins; 0 never rotates."`
	Keep        int           `json:"keep" relay:"min=0" doc:"Rotated files to keep; 0 keeps all."`
}

func sinkDefaults() sinkConfig { return sinkConfig{Format: "jsonl", Keep: 10} }

// Validate checks what one key alone cannot say.
func (c *sinkConfig) Validate() error {
	if c.RotateBytes > 0 && c.Path == "" {
		return relaycfg.Errorf("rotate_bytes", "needs a file to rotate: set path")
	}
	return nil
}

type sourceConfig struct {
	Path    string        `json:"path" relay:"alias=input" doc:"File to read, one JSON value a line; standard input by default."`
	Follow  bool          `json:"follow" doc:"Wait for more at the end of the file, and follow it through rotation."`
	MaxLine relaycfg.Size `json:"max_line" relay:"min=1" doc:"Longest line; a longer one becomes a dead letter that holds its beginning."`
}

func sourceDefaults() sourceConfig { return sourceConfig{MaxLine: 16 << 20} }

// Validate checks what one key alone cannot say.
func (c *sourceConfig) Validate() error {
	if c.Follow && c.Path == "" {
		return relaycfg.Errorf("follow", "needs a file to follow: set path")
	}
	return nil
}

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
			if cfg.Path == "" {
				return input.open(cfg), nil
			}
			return newFile(cfg, env)
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
			Weakest:  "a file that is overwritten in place or cut before it was read",
		},
	}
}
