// Relay-nats moves messages between PostgreSQL outbox and inbox tables and NATS JetStream.
package main

import (
	"github.com/grove/pgtrickle-relay/relay-nats/natsrelay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycmd"
)

func main() { relaycmd.Main("relay-nats", natsrelay.Backend()) }
