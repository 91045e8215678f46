// Relay-redis moves messages between PostgreSQL outbox and inbox tables and
// Redis Streams.
package main

import (
	"github.com/grove/pgtrickle-relay/relay-redis/redisrelay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycmd"
)

func main() { relaycmd.Main("relay-redis", redisrelay.Backend()) }
