package main

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// The backends in SQL and in the docs are generated from their Go structs.
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
			t.Errorf("%s does not match the backends; run make generate", file)
		}
	}
}
