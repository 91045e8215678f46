// Package rabbitmqrelay is the backend for RabbitMQ, over AMQP 0.9.1. Its name in
// a configuration is rabbitmq. It wants RabbitMQ 3.8 or later, 3.9 for streams.
//
// # Keys of sink and source
//
//	url               nodes, tried in turn, a list or one string with commas; required.
//	                  amqp://USER:PASSWORD@HOST:5672/VHOST or amqps://; ?auth_mechanism=EXTERNAL
//	                  has the client's certificate say who it is
//	tls               TLS whatever the URLs say; false
//	tls_ca            authorities to trust, in place of the system's; implies TLS
//	tls_cert, tls_key the client's certificate and its key; imply TLS
//	timeout           for a connection to be open; 30s
//	heartbeat         a peer that is silent for twice as long is dead; 10s
//
// # Sink keys
//
//	exchange          exchange to publish to; "", the default exchange, where the routing key is a queue's name
//	routing_key       template; {stream_table}.{op} (alias: routing_key_template)
//	exchange_type     type of an exchange that is declared; topic
//	declare_exchange  declare it, durable; false: check that it exists
//	mandatory         refuse a message that no queue would get; true. Without it such a message is lost
//	persistent        messages survive a restart of the broker; true
//	strict_order      one message of a key in flight; false. See Order
//	max_in_flight     messages ahead of their confirms; 2000
//	confirm_timeout   a broker that confirms nothing for so long is dead; 30s, not counted while it says that it is blocked
//
// # Source keys
//
//	queue             queue to consume; required
//	declare_queue     declare it, durable; false: check that it exists
//	queue_type        quorum, classic or stream; quorum
//	bind_exchange     exchange to which a declared queue is bound; none
//	bind_keys         routing keys of the binding, a list; #
//	prefetch          messages ahead of their acknowledgement; 1000 (alias: prefetch_count)
//	on_reject         requeue, dead-letter or drop; requeue. See Refusals
//	id                refuse or hash a message without message-id; refuse
//	max_deliveries    refuse what a quorum queue has delivered so often in vain; 0, never
//	consumer_tag      pgtrickle-relay and the pipeline's name
//	stream_offset     where a stream is read from at first: first, last, next, an offset, or an age such as 1h; first
//	offset_queue      queue that keeps a stream's offset; QUEUE.offset.GROUP.PIPELINE
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
// The source reads all of this back. Without Pgtrickle-Subject a message's
// subject is its routing key, without Pgtrickle-Op its op is its type if that is
// one of the three, else event. Its origin is rabbitmq:QUEUE. Without message-id
// its id is rabbitmq:QUEUE:OFFSET in a stream, elsewhere with id=hash
// rabbitmq:QUEUE:sha256:HEX of the body: two messages with equal bodies are then
// one.
//
// # Delivery, forward
//
// A message counts when the broker has confirmed it, which for a persistent one
// in a quorum queue means that a majority has it on disk. Delivery is at least
// once: after a crash or a lost connection what was not confirmed is published
// again with the same message-id.
//
// A message that is returned because no queue would get it is refused for good
// and becomes a dead letter. When that is a binding's fault, mend it and retry the
// dead letters.
//
// When the broker blocks publishers, for want of memory or disk, a batch that has
// begun waits, and the next one fails as transient.
//
// # Order
//
// Confirms come long after the next messages are sent. So the first message of a
// routing key on a connection goes alone among those of its ordering key: only
// when it has not been returned do the others follow. A quorum or classic queue
// rejects messages (basic.nack) when its overflow is reject-publish and it is
// full; with such a queue set strict_order, or a later message may get in where
// an earlier one of its key did not, and then once more behind it. A binding
// removed while messages are in flight has the same effect.
//
// # Delivery, reverse
//
// Messages are acknowledged after the inbox commit, many at once where they are
// contiguous. What was in flight when a connection was lost is delivered again;
// the inbox knows it by its id. A consumer that the broker cancels, because the
// queue was deleted or its leader moved, begins anew, and declares the queue with
// its bindings if that is asked for.
//
// A stream has no acknowledgements, and AMQP 0.9.1 cannot store an offset. The
// source keeps it as the only message of a queue of its own, a quorum queue of
// length 1, replaced and confirmed with each acknowledgement.
//
// Where a pipeline begins is stored there before its first message is handed out,
// so that stream_offset is asked once: a connection that is lost before the first
// acknowledgement makes no hole. For next and an age that is a time, a minute
// early, as the broker's clock may differ; what comes too much is seldom, and
// between start and first acknowledgement only.
//
// To be read, the offset must be taken out of its queue for a moment. A source
// that finds the queue empty therefore waits (a transient error) until a dead
// connection that may hold the offset is given up by the broker, four heartbeats,
// and only then begins at stream_offset, with a warning. To have a pipeline begin
// again, stop it and delete the queue.
//
// # Refusals
//
// A message is refused when it has no id (and id is refuse) or was delivered too
// often (max_deliveries). What becomes of it in the queue is on_reject:
//
//	requeue       it goes back once, for another consumer to take; when it comes
//	              again it becomes a dead letter of the relay, and leaves the queue
//	dead-letter   a dead letter of the relay, and rejected: the queue's dead-letter exchange gets it
//	drop          a dead letter of the relay, and leaves the queue
//
// Nothing is lost in any of them: relay_dead_letters has it before the broker
// lets go. In a stream they are the same.
//
// # Errors
//
//	returned: 312 NO_ROUTE                                     permanent
//	id, routing key, header name > 255 bytes; headers > frame  permanent
//	a body larger than max_message_size                        permanent; the limit is learnt from the first, with which the channel is lost
//	a row without a field of the template                      permanent
//	basic.nack, blocked, no confirms, no connection            transient
//	320 CONNECTION_FORCED, 405 RESOURCE_LOCKED, 541, 501, 505  transient
//	404 of a queue whose node is down, 406 of an acknowledgement that timed out, 530 of too many connections  transient
//	404 NOT_FOUND: exchange, queue                             fatal
//	403 ACCESS_REFUSED: credentials, permissions               fatal
//	406 PRECONDITION_FAILED: declared otherwise                fatal
//	530 NOT_ALLOWED: virtual host; 503, 540                    fatal
//	a certificate that is not trusted                          fatal
package rabbitmqrelay
