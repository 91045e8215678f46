// Relay-stdout moves messages from PostgreSQL outbox tables to standard output or files, and from these to inbox tables.
package main

import (
	"github.com/grove/pgtrickle-relay/relay-stdout/stdoutrelay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycmd"
)

func main() { relaycmd.Main("relay-stdout", stdoutrelay.Backend()) }
