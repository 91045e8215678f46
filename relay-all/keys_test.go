package main

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// What SQL and the docs know of the backends is made from their Go structs.
func TestGeneratedFilesAreCurrent(t *testing.T) {
	t.Parallel()
	for file, args := range map[string][]string{
		"../relaycore/internal/migrate/backends.json": {"keys", "--output", "json"},
		"../docs/config.md":                           {"keys"},
	} {
		out, err := exec.CommandContext(t.Context(), binary(t), args...).Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		have, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasSuffix(bytes.TrimSpace(have), bytes.TrimSpace(out)) {
			t.Errorf("%s is not what the backends say; run make generate", file)
		}
	}
}
