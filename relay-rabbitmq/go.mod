module github.com/grove/pgtrickle-relay/relay-rabbitmq

go 1.26.0

require github.com/grove/pgtrickle-relay/relaycore v0.0.0

require github.com/rabbitmq/amqp091-go v1.16.0

replace github.com/grove/pgtrickle-relay/relaycore => ../relaycore
