// Package relaynet connects backends to their far ends: TLS from a configuration,
// and a dialer that keeps track of its connections.
//
// [TLS] and [ServerTLS] are embedded in a backend's configuration and give all
// backends the same keys. [Dialer] disconnects a client that does not return when
// its context ends. [Untrusted] names a certificate that one side refused and what
// to do about it.
package relaynet
