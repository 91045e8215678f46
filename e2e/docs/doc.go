// Package docs runs the blocks of README.md, docs and relay-*/README.md against
// real servers and compares what they print.
//
// The info string of a fenced block states what happens with it:
//
//	sh run         runs in the page's shell; it must succeed
//	sh run wait    runs again until the output matches, at most 30 s
//	sql run [wait] runs in psql, connected to $PGTRICKLE_RELAY_POSTGRES_URL
//	text output    what the block before it prints; … stands for any text
//	sh skip: WHY   does not run
//
// A page has one shell, so variables and background jobs stay. A block in an
// HTML comment (<!-- sql run, then the text, then -->) runs and is not shown.
// Pages name servers by their usual addresses, such as localhost:4222; the
// runner puts in the addresses of its own.
package docs
