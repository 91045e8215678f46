package stdoutrelay

import "github.com/grove/pgtrickle-relay/relaycore/relaycfg"

type sinkConfig struct {
	Format      string        `json:"format" relay:"enum=jsonl|json_pretty|csv|raw" doc:"How messages are laid out: jsonl and json_pretty write the body, csv a row with id, subject, op, key, outbox id, time and body, raw the body's bytes and nothing else."`
	Path        string        `json:"path" relay:"file,alias=output" doc:"File to append to; standard output by default."`
	RotateBytes relaycfg.Size `json:"rotate_bytes" relay:"min=0,needs=path" doc:"Size beyond which the file becomes path.1 and a new one begins; 0 never rotates."`
	Keep        int           `json:"keep" relay:"min=0" doc:"Rotated files to keep; 0 keeps all."`
}

func sinkDefaults() sinkConfig { return sinkConfig{Format: "jsonl", Keep: 10} }

type sourceConfig struct {
	Path    string        `json:"path" relay:"file,alias=input" doc:"File to read, one JSON value a line; standard input by default."`
	Follow  bool          `json:"follow" relay:"needs=path" doc:"Wait for more at the end of the file. A file that is replaced, cut or renamed stops the pipeline."`
	MaxLine relaycfg.Size `json:"max_line" relay:"min=1" doc:"Longest line; a longer one becomes a dead letter that holds its beginning."`
}

func sourceDefaults() sourceConfig { return sourceConfig{MaxLine: 16 << 20} }
