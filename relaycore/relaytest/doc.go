// Package relaytest holds the conformance suite of the relay's contract. A
// backend passes when [TestSink] and [TestSource] pass against its real server;
// docs/backend.md shows how little a backend has to write for that.
//
// The suite reads what a sink wrote, and feeds what a source reads, with the
// broker's own client, supplied by the harness: a mistake that a sink and a
// source share cannot hide behind itself.
package relaytest
