// Relay-rabbitmq moves messages between PostgreSQL outbox and inbox tables and
// RabbitMQ.
package main

import (
	"github.com/grove/pgtrickle-relay/relay-rabbitmq/rabbitmqrelay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycmd"
)

func main() { relaycmd.Main("relay-rabbitmq", rabbitmqrelay.Backend()) }
