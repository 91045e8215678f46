// Package relay is the contract between the relay's engine and its backends.
// It imports nothing outside the standard library, so that a backend costs its
// users one broker client and nothing else.
//
// # A message's life
//
// Data flows one way:
//
//	Source.Receive -> decode or encode -> Sink.Publish -> Source.Ack
//
// The engine owns every arrow. It calls Receive of a [Source] from one goroutine at a
// time, and Ack from another. It calls a [Sink] from one goroutine. It retries, backs
// off, bisects, parks, dead-letters, limits rates, counts and logs. A backend does
// none of these: it translates, and it reports errors of the right class (see
// [Permanent], [Fatal] and [Unknown]).
//
// # Guarantee
//
// A message is acknowledged to its source only after its sink has confirmed it, or
// after it has been stored as a dead letter. So every message is delivered at least
// once. It is delivered effectively once if the far end drops a second copy by
// [Message.ID]. The same holds for a sink that can read back what it wrote ([Resumer]).
//
// # Order
//
// Messages with the same non-empty [Message.Key] arrive in the order in which
// the source gave them, across retries, reloads, failovers and redrive. This is one
// rule for a sink. If a message of a Key is not confirmed, Publish confirms no later
// message of that Key.
//
// # The kit
//
// Backends share these:
//
//	Outcome      the result of a batch by index
//	Lanes        a batch split by key
//	Acks         one position out of acknowledgements in any order
//	Incarnation  the identity of one life of a far end
//	FarEnds      the identities that a pipeline's cursor keeps, where the far end has the position
//	relaycfg     configurations and factories
//	relaynet     TLS and connections
//	relaytest    the conformance suite
//
// # Slices
//
// A batch, its messages and their bytes belong to the caller again as soon as
// Publish or Ack returns; they are reused. What a Source returns from Receive it
// must leave alone until the message has been acknowledged.
package relay
