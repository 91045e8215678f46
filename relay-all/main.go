// Pgtrickle-relay moves messages between PostgreSQL and messaging systems. It has
// all backends.
package main

import (
	"github.com/grove/pgtrickle-relay/relay-kafka/kafkarelay"
	"github.com/grove/pgtrickle-relay/relay-nats/natsrelay"
	"github.com/grove/pgtrickle-relay/relay-pginbox/pginboxrelay"
	"github.com/grove/pgtrickle-relay/relay-rabbitmq/rabbitmqrelay"
	"github.com/grove/pgtrickle-relay/relay-redis/redisrelay"
	"github.com/grove/pgtrickle-relay/relay-sqs/sqsrelay"
	"github.com/grove/pgtrickle-relay/relay-stdout/stdoutrelay"
	"github.com/grove/pgtrickle-relay/relay-webhook/webhookrelay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycmd"
)

func main() {
	relaycmd.Main("pgtrickle-relay",
		natsrelay.Backend(), kafkarelay.Backend(), redisrelay.Backend(), sqsrelay.Backend(),
		rabbitmqrelay.Backend(), webhookrelay.Backend(), pginboxrelay.Backend(), stdoutrelay.Backend())
}
