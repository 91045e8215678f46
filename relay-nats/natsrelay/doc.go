// Package natsrelay is the backend for NATS JetStream. Its name in a configuration
// is nats; docs/config.md lists its keys.
//
// # What travels
//
//	body          the format's bytes
//	Nats-Msg-Id   the message's id
//	headers       Pgtrickle-Op, Pgtrickle-Outbox-Id, Pgtrickle-Full-Refresh, Pgtrickle-Key,
//	              Content-Type, and the message's own, traceparent among them
//
// The client turns line breaks in a header's value into spaces. The source reads all
// of this back. A message of another producer has the id nats:STREAM@TIME:SEQUENCE,
// where TIME is that of the stream's creation. With id_scope global it has its
// Nats-Msg-Id, if there is one, or else nats:STREAM:SEQUENCE. In both cases its op is
// event, its origin nats:STREAM.
//
// # Delivery, forward
//
// A message is confirmed when the stream's PubAck has arrived. Messages are published
// with core NATS and a reply subject of the sink, which costs a fifth of the
// allocations of the client's PublishMsgAsync.
//
// The stream drops a second copy by Nats-Msg-Id within its duplicate window. Beyond
// that the engine reads the stream back: after a crash from the last checkpoint, and
// after a lost confirmation from the last position. So delivery is effectively once,
// unless the stream is in memory or its messages are removed by then. A work queue
// (retention workqueue) cannot be read back; there only the window counts.
//
// A stream that exists is left as it is. The client never reconnects by itself,
// because it would send what it had buffered after newer messages. A lost connection
// ends the batch, and the next Publish connects again.
//
// The order per key must survive a message that is refused or lost while the next one
// is stored. With strict_order the next message of a key is sent when the one before
// it is confirmed. Without it that is done only where the stream could put a key out
// of order:
//
//   - streams with discard new and a limit, or with replicas;
//   - streams in an account with a limit on what it stores, which the user must be
//     allowed to ask for ($JS.API.INFO);
//   - streams whose leader is another server than the connected one;
//   - messages with a header of the user's own that begins with Nats-.
//
// Two refusals cannot be foreseen. Others may publish faster into the stream than it
// stores (429, 10167). The storage of the whole server may be full (10023) while
// messages expire. Set strict_order where that can happen.
//
// # Delivery, reverse
//
// A message is acknowledged after the inbox has committed it. The acknowledgements of
// a batch are sent together, and the server's answer to the last one confirms all,
// because the server handles them in order. While the source holds messages longer
// than a third of ack_wait it extends ack_wait, in its own queue as well.
//
// A consumer that exists is used as it is, if it is a pull consumer with ack policy
// all or explicit, for the same subjects. A consumer redelivers what was not
// acknowledged only after ack_wait, and delivers newer messages before. So each
// connection resets a consumer with messages pending, and delivery begins again after
// the last acknowledgement; the inbox recognises what it has. Servers before 2.14
// cannot reset a consumer: there the source waits for ack_wait before it reads.
//
// The client requests messages with a limit on their bytes, at which a larger message
// would stall it. The limit is at least the server's max_payload.
//
// A consumer that is deleted while the pipeline runs is created again where it was. A
// stream that is deleted stops the pipeline.
//
// The pipeline's cursor has the time at which the stream was created. A stream that was
// created again, or that ends before the consumer's position, stops the pipeline. With
// on_recreated restart the source reads it from its beginning, and the time becomes
// part of the ids: nats:STREAM@TIME:SEQUENCE. Otherwise the inbox would take the new
// messages for the old ones.
//
// Messages that leave the stream before they are read are lost, and the log counts them.
// With a filter of subjects nothing can be counted. Neither can what is purged while no
// relay runs, because the server moves the consumer's position. The same holds for what
// a relay had received, and not acknowledged, when it was killed.
//
// # Errors
//
// docs/refusals.md lists the answers and what the relay does with them. A header name that
// cannot be sent is the message's fault. A certificate that is not trusted, and a stream
// without acks, stop the pipeline. All else is transient: no server, timeouts.
package natsrelay
