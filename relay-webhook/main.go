// Relay-webhook moves messages between PostgreSQL outbox and inbox tables and HTTP endpoints.
package main

import (
	"github.com/grove/pgtrickle-relay/relay-webhook/webhookrelay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycmd"
)

func main() { relaycmd.Main("relay-webhook", webhookrelay.Backend()) }
