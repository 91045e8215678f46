package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The example in docs/backend.md is this program, and it builds and runs.
func TestExampleInTheDocs(t *testing.T) {
	t.Parallel()
	docs, err := os.ReadFile("../../../docs/backend.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(docs), "```go\n"+string(source)+"```") {
		t.Error("docs/backend.md does not show e2e/examples/custom/main.go as it is")
	}
	binary := t.TempDir() + "/custom-relay"
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), binary, "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := string(out); !strings.HasPrefix(got, "custom-relay ") || !strings.Contains(got, "backends: kafka, stdout\n") {
		t.Errorf("version prints %q, want the name and the two backends", got)
	}
	links, err := exec.CommandContext(t.Context(), "go", "version", "-m", binary).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"nats.go", "go-redis", "amqp091-go", "aws-sdk-go"} {
		if strings.Contains(string(links), other) {
			t.Errorf("the binary links %s, which it has no use for", other)
		}
	}
}
