package stdoutrelay

import (
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

func TestSinkConfig(t *testing.T) {
	t.Parallel()
	with := func(change func(*sinkConfig)) sinkConfig {
		c := sinkDefaults()
		change(&c)
		return c
	}
	for name, tc := range map[string]struct {
		raw     string
		want    sinkConfig
		wantErr string
	}{
		"defaults":          {raw: ``, want: sinkDefaults()},
		"all":               {raw: `{"format":"csv","path":"/tmp/x","rotate_bytes":"1MiB","keep":3}`, want: sinkConfig{Format: "csv", Path: "/tmp/x", RotateBytes: 1 << 20, Keep: 3}},
		"alias":             {raw: `{"output":"/tmp/x"}`, want: with(func(c *sinkConfig) { c.Path = "/tmp/x" })},
		"unknown format":    {raw: `{"format":"jsonnl"}`, wantErr: `did you mean "jsonl"?`},
		"rotate nothing":    {raw: `{"rotate_bytes":1}`, wantErr: `key "rotate_bytes": needs path`},
		"keep less than 0":  {raw: `{"path":"x","keep":-1}`, wantErr: `must be at least 0`},
		"unknown key":       {raw: `{"rotate":1}`, wantErr: `key "rotate": unknown key`},
		"size is no number": {raw: `{"path":"x","rotate_bytes":"much"}`, wantErr: `wants a size`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := sinkDefaults()
			err := relaycfg.Decode([]byte(tc.raw), &got)
			switch {
			case tc.wantErr != "":
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("Decode(%s) = %v, want error with %q", tc.raw, err, tc.wantErr)
				}
			case err != nil || got != tc.want:
				t.Fatalf("Decode(%s) = %+v, %v; want %+v", tc.raw, got, err, tc.want)
			}
		})
	}
}

func TestSourceConfig(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		raw     string
		want    sourceConfig
		wantErr string
	}{
		"defaults":       {raw: ``, want: sourceDefaults()},
		"all":            {raw: `{"path":"x","follow":true,"max_line":"1KiB"}`, want: sourceConfig{Path: "x", Follow: true, MaxLine: 1024}},
		"alias":          {raw: `{"input":"x"}`, want: sourceConfig{Path: "x", MaxLine: 16 << 20}},
		"follow nothing": {raw: `{"follow":true}`, wantErr: `key "follow": needs path`},
		"unknown key":    {raw: `{"folow":true}`, wantErr: `did you mean "follow"?`},
		"wrong type":     {raw: `{"path":"x","follow":"yes"}`, wantErr: `wants boolean`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := sourceDefaults()
			err := relaycfg.Decode([]byte(tc.raw), &got)
			switch {
			case tc.wantErr != "":
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("Decode(%s) = %v, want error with %q", tc.raw, err, tc.wantErr)
				}
			case err != nil || got != tc.want:
				t.Fatalf("Decode(%s) = %+v, %v; want %+v", tc.raw, got, err, tc.want)
			}
		})
	}
}
