// Package relaytest holds the conformance suite of the relay's contract. A
// backend passes when [TestSink] and [TestSource] pass against its real server;
// docs/backend.md shows how little a backend has to write for that.
//
// A harness reads what a sink wrote, and feeds a source, with the broker's own
// client. So a mistake that a sink and a source share does not hide itself.
//
// [Queue] is a broker in memory, for tests of code around sinks and sources.
package relaytest
