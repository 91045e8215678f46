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
// The engine owns every arrow. It calls a [Source] from one goroutine at a time
// for Receive and from one goroutine at a time for Ack, and the two may overlap.
// It calls a [Sink] from one goroutine. It retries, backs off, bisects, parks,
// dead-letters, limits rates, counts and logs. A backend does none of these: it
// translates, and it reports errors of the right class (see [Permanent] and
// [Fatal]).
//
// # Guarantee
//
// A message is acknowledged to its source only after its sink has confirmed that
// it is durable, or after the message has been stored as a dead letter. So every
// message is delivered at least once. Where a far end can tell a second copy from
// the first, by [Message.ID] or by reading back its own tail ([Resumer]), it is
// delivered effectively once.
//
// # Order
//
// Messages with the same non-empty [Message.Key] arrive in the order in which
// the source gave them, across retries, reloads, failovers and redrive. A sink
// keeps this promise with one rule: when message i of a Key is not confirmed, no
// later message of that Key may be confirmed by the same Publish.
//
// # Slices
//
// A batch, its messages and their bytes belong to the caller again as soon as
// Publish or Ack returns; they are reused. What a Source returns from Receive it
// must leave alone until the message has been acknowledged.
package relay
