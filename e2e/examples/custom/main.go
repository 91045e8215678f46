// Custom is a relay with two backends of its user's choice.
package main

import (
	"github.com/grove/pgtrickle-relay/relay-kafka/kafkarelay"
	"github.com/grove/pgtrickle-relay/relay-stdout/stdoutrelay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycmd"
)

func main() { relaycmd.Main("custom-relay", kafkarelay.Backend(), stdoutrelay.Backend()) }
