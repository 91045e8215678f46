module github.com/grove/pgtrickle-relay/relay-stdout

go 1.26.0

require github.com/grove/pgtrickle-relay/relaycore v0.0.0

replace github.com/grove/pgtrickle-relay/relaycore => ../relaycore
