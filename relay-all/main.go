// Pgtrickle-relay moves messages between PostgreSQL and every messaging system
// that there is a backend for.
package main

import (
	"github.com/grove/pgtrickle-relay/relay-stdout/stdoutrelay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycmd"
)

func main() { relaycmd.Main("pgtrickle-relay", stdoutrelay.Backend()) }
