// Package rabbitmqrelay is the backend for RabbitMQ, over AMQP 0.9.1. Its name in
// a configuration is rabbitmq. It needs RabbitMQ 3.8 or later, 3.9 for streams.
//
// # What travels
//
//	body          the format's bytes
//	message-id    the message's id
//	type          insert, update or delete
//	timestamp     when the event was recorded, in seconds
//	content-type  the format's
//	headers       Pgtrickle-Op, Pgtrickle-Outbox-Id, Pgtrickle-Full-Refresh, Pgtrickle-Key,
//	              Pgtrickle-Subject, and the message's own, traceparent among them
//
// The source reads all of this back. Without Pgtrickle-Subject a message's subject
// is its routing key. Without Pgtrickle-Op its op is its type if that is one of the
// three, else event. Its origin is rabbitmq:QUEUE.
//
// A message of another producer has the id rabbitmq:QUEUE:MESSAGE-ID, or its offset in
// a stream; with id_scope global it has its message-id.
// Without message-id the id is rabbitmq:QUEUE:OFFSET in a stream. Elsewhere, with
// id=hash, it is rabbitmq:QUEUE:sha256:HEX of the body: two messages with equal
// bodies are then one.
//
// # Delivery, forward
//
// A message counts as delivered when the broker has confirmed it. For a persistent
// message in a quorum queue this means that a majority has it on disk. Delivery is
// at least once: after a crash or a lost connection, what was not confirmed is
// published again with the same message-id.
//
// A message that is returned because no queue would get it becomes a dead letter.
// If a binding was missing, add it and retry the dead letters.
//
// When the broker blocks publishers, for lack of memory or disk, a batch that has
// begun waits, and the next one fails as transient.
//
// # Order
//
// Confirms come long after the next messages are sent. So the first message of a
// routing key on a connection is sent alone among those of its ordering key. The
// others follow when it has not been returned.
//
// A quorum or classic queue rejects messages (basic.nack) if its overflow is
// reject-publish and it is full. Set strict_order for such a queue. Without it, a
// later message may get in while an earlier one of its key does not, and is then
// published again after it. A binding that is removed while messages are in flight
// has the same effect.
//
// # Delivery, reverse
//
// Messages are acknowledged after the inbox commit, many at once if they are
// contiguous. What was in flight when a connection was lost is delivered again; the
// inbox knows it by its id. A consumer that the broker cancels, because the queue
// was deleted or its leader moved, begins again. With create_if_missing it declares
// the queue and its bindings.
//
// A queue that is deleted and declared again looks as before. So the source binds it to an
// internal exchange QUEUE.life.GROUP.PIPELINE, which the broker deletes with the queue. A
// session that does not find it logs the error "queue was deleted", and the cursor counts it.
// How many messages were lost is not known. The user needs permission to configure, write
// and read the exchange, and to write to the queue. Without it the log warns once.
//
// A stream has no acknowledgements, and AMQP 0.9.1 cannot store an offset. The source
// keeps it as the only message of a quorum queue of its own. Each acknowledgement
// replaces it, and is confirmed.
//
// The source stores where a pipeline begins before it hands out the first message.
// So it uses stream_offset only once, and a connection that is lost before the first
// acknowledgement makes no hole. For next and an age the start is a time. It
// is a minute early, because the broker's clock may differ, so that some messages
// may be delivered twice between start and first acknowledgement.
//
// To read the offset, the source takes it out of its queue for a moment. A source
// that finds the queue empty therefore waits (a transient error) for four
// heartbeats: until then a dead connection may hold the offset. Then it begins at
// stream_offset, with a warning. To make a pipeline begin again, stop it and delete
// the queue.
//
// A stream has no identity that AMQP 0.9.1 shows. So a hash of the message that was
// settled last is stored with the offset, and each session reads that message again.
// If it is another one, or the stream ends before it, the stream was deleted and
// declared again, and the pipeline stops. With on_recreated restart the source reads
// the stream from its beginning, with ids of its own. If retention removed the message,
// the log reports that the position cannot be checked. A stream that was filled again with
// equal messages is not noticed; routing key, message-id, type, timestamp and body count.
//
// # Refusals
//
// A message is refused when it has no id (and id is refuse) or was delivered too
// often (max_deliveries). on_reject decides what happens to it in the queue:
//
//	requeue       it is requeued once, for another consumer; when it comes again
//	              it becomes a dead letter of the relay, and leaves the queue
//	dead-letter   a dead letter of the relay, and rejected: the queue's dead-letter exchange gets it
//	drop          a dead letter of the relay, and leaves the queue
//
// Nothing is lost in any case: relay_dead_letters has the message before the broker
// removes it. In a stream all three are the same.
//
// # Errors
//
// docs/refusals.md lists the answers and what the relay does with them. The broker closes
// the channel for a message that is too large, and for a routing key to which the user may
// not publish. The sink learns either from the first, and remembers it for 10 seconds. No
// confirms, no connection and a broker that blocks publishers are transient. Headers larger
// than a frame and a row without a field of the template are permanent. A certificate that
// is not trusted is fatal.
package rabbitmqrelay
