// Relay-kafka moves messages between PostgreSQL outbox and inbox tables and Apache Kafka.
package main

import (
	"github.com/grove/pgtrickle-relay/relay-kafka/kafkarelay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycmd"
)

func main() { relaycmd.Main("relay-kafka", kafkarelay.Backend()) }
