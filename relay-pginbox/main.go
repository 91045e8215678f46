// Relay-pginbox moves messages from PostgreSQL outbox tables to inbox tables of other databases.
package main

import (
	"github.com/grove/pgtrickle-relay/relay-pginbox/pginboxrelay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycmd"
)

func main() { relaycmd.Main("relay-pginbox", pginboxrelay.Backend()) }
