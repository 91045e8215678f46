// Relay-sqs moves messages between PostgreSQL outbox and inbox tables and Amazon SQS.
package main

import (
	"github.com/grove/pgtrickle-relay/relay-sqs/sqsrelay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycmd"
)

func main() { relaycmd.Main("relay-sqs", sqsrelay.Backend()) }
