package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relay-kafka/kafkarelay"
	"github.com/grove/pgtrickle-relay/relay-nats/natsrelay"
	"github.com/grove/pgtrickle-relay/relay-pginbox/pginboxrelay"
	"github.com/grove/pgtrickle-relay/relay-rabbitmq/rabbitmqrelay"
	"github.com/grove/pgtrickle-relay/relay-redis/redisrelay"
	"github.com/grove/pgtrickle-relay/relay-sqs/sqsrelay"
	"github.com/grove/pgtrickle-relay/relay-stdout/stdoutrelay"
	"github.com/grove/pgtrickle-relay/relay-webhook/webhookrelay"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var update = flag.Bool("update", false, "write docs/refusals.md")

// linked are the backends of this binary.
var linked = []relay.Backend{
	natsrelay.Backend(), kafkarelay.Backend(), redisrelay.Backend(), rabbitmqrelay.Backend(),
	sqsrelay.Backend(), webhookrelay.Backend(), stdoutrelay.Backend(), pginboxrelay.Backend(),
}

// docs/refusals.md is made from the tables by which the backends classify.
func TestRefusalsPage(t *testing.T) {
	t.Parallel()
	const file = "../docs/refusals.md"
	page := refusalsPage(linked)
	if *update {
		if err := os.WriteFile(file, []byte(page), 0o644); err != nil { //nolint:gosec // a page of the documentation
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(file); err != nil || string(have) != page {
		t.Errorf("%s does not match the backends (%v); run make generate", file, err)
	}
}

func refusalsPage(backends []relay.Backend) string {
	var page strings.Builder
	page.WriteString(`# Refusals

What the relay does when a far end does not accept a message, for each answer that a far end can
give. Written by ` + "`make generate`" + ` from the tables by which the backends classify.

| cause | what the relay does |
|---|---|
| message | that message becomes a dead letter and parks its key; all others go on |
| destination | as for a message, if a field of the row names the destination; else as for a pipeline |
| pipeline | the pipeline fails, is retried and loses nothing; an operator has to change something |
| passes | the relay retries in order until the far end has recovered; so too for answers not listed |

## By kind

A dash means that the far end has no such refusal; the table of the backend has the reason.

| kind |`)
	for i := range backends {
		page.WriteString(" " + backends[i].Name + " |")
	}
	page.WriteString("\n|---|" + strings.Repeat("---|", len(backends)) + "\n")
	for _, kind := range relay.RefusalKinds() {
		page.WriteString("| " + string(kind) + " |")
		for i := range backends {
			page.WriteString(" " + causes(backends[i].Refusals, kind) + " |")
		}
		page.WriteString("\n")
	}
	for i := range backends {
		fmt.Fprintf(&page, "\n## %s\n\n| kind | answer | cause | note |\n|---|---|---|---|\n", backends[i].Name)
		for _, kind := range relay.RefusalKinds() {
			for _, r := range backends[i].Refusals {
				if r.Kind != kind {
					continue
				}
				answer, cause := "—", "—"
				if r.Blame != "" {
					answer, cause = "`"+strings.NewReplacer("*", "…", "|", "`, `").Replace(r.Answer)+"`", string(r.Blame)
				}
				fmt.Fprintf(&page, "| %s | %s | %s | %s |\n", kind, answer, cause, r.Note)
			}
		}
	}
	return page.String()
}

// causes returns what the rows of a kind blame, each once.
func causes(table relay.Refusals, kind relay.RefusalKind) string {
	var found []string
	for _, r := range table {
		if r.Kind == kind && r.Blame != "" && !slices.Contains(found, string(r.Blame)) {
			found = append(found, string(r.Blame))
		}
	}
	if len(found) == 0 {
		return "—"
	}
	return strings.Join(found, ", ")
}
