// Package natsrelay is the backend for NATS JetStream. Its name in a
// configuration is nats.
//
// # Keys of sink and source
//
//	url               servers, a list or one string with commas; required
//	credentials_file  user JWT and nkey seed in one file
//	nkey_file         nkey seed
//	user, password    or these
//	token             or this; one of the four
//	tls_ca            authorities to trust, in place of the system's
//	tls_cert, tls_key the client's certificate and its key
//	domain            JetStream domain, where the stream is behind a leaf node
//
// # Sink keys
//
//	stream            stream that must store the messages; without it, the one that takes the subject
//	subject           template of subjects, in place of subject_template
//	create_stream     create the stream when there is none; false
//	stream_subjects   its subjects; by default the subject template with wildcards for variables
//	stream_replicas   its replicas; 1
//	duplicate_window  its duplicate window; 2m
//	ack_timeout       how long the server may be silent; 5s
//	max_in_flight     messages ahead of their confirmations; 4096
//	pipelining        auto, full or per_key; see below
//
// A stream that exists is left as it is. One that is created allows fast batches
// (allow_batched), where the server is 2.14 or newer.
//
// # Source keys
//
//	stream            stream to read; without it, the one that holds subject
//	consumer          durable consumer; pgtrickle-relay-PIPELINE (alias: durable_name)
//	subject           subjects to read, a list; all
//	deliver_policy    where a new consumer begins: all, last, new, by_start_time; all
//	start_time        RFC 3339, for by_start_time (alias: opt_start_time)
//	ack_wait          30s; extended while the inbox is slow
//	max_deliver       deliveries before the server gives a message up; -1, never
//	ack_policy        of a consumer that is created: all (one acknowledgement a batch)
//	                  or explicit; all
//	max_ack_pending   messages ahead of their acknowledgements; 20000
//	create_stream     create the stream, for subject, when there is none; false
//	stream_replicas   its replicas; 1
//
// A consumer that exists is used as it is, if it is a pull consumer whose ack
// policy is all or explicit, for the same subjects.
//
// # What travels
//
//	body          the format's bytes
//	Nats-Msg-Id   the message's id
//	headers       Pgtrickle-Op, Pgtrickle-Outbox-Id, Pgtrickle-Full-Refresh, Pgtrickle-Key,
//	              Content-Type, and the message's own, traceparent among them
//
// Line breaks in a header's value become spaces; the client sees to it. The
// source reads all of this back. A message without Nats-Msg-Id has the id
// nats:STREAM:SEQUENCE; its op is event, its origin nats:STREAM.
//
// # Delivery, forward
//
// A message counts when the stream's PubAck has come. Messages are published
// with core NATS and a reply subject of ours, which keeps the server busy with a
// fifth of the allocations of the client's PublishMsgAsync. Where the stream has
// allow_batched set, eight and more go as a fast batch: the stream confirms them by
// the hundred, and ends the batch in front of a message that it refuses.
//
// The stream drops a second copy by Nats-Msg-Id for as long as its duplicate
// window says. Beyond that the sink looks for itself: after a crash its successor
// reads back the headers from the last checkpoint to the end of the stream
// (Position and Resume), and when a connection was lost with confirmations
// outstanding, and the window has half passed before there is a new one, it reads
// back which of these messages had been stored. So delivery is effectively once,
// unless the stream is in memory or its messages are gone by then. A work queue
// (retention workqueue) cannot be read back: there the window alone counts.
//
// The client never reconnects by itself, because it would send what it had
// buffered behind newer messages. A lost connection ends the batch; the next
// Publish dials.
//
// Order per key must survive a message that is refused or lost while the next
// one is stored. With pipelining full nothing waits. With per_key the next
// message of a key is sent when the one ahead of it is confirmed. With auto it is
// per_key for streams with discard new and a limit, streams in an account with a
// limit on what it stores (the user must be allowed to ask, $JS.API.INFO), streams
// with replicas, and streams whose leader is another server than the one connected
// to, and also for messages with a header of the user's that begins with Nats-;
// full otherwise. A fast batch keeps the order by itself, so it is used with auto
// and full whatever the stream is like.
//
// What auto cannot foresee is a server that refuses a message for want of room and
// has room again for the next: when others publish faster into the stream than it
// stores (429, 10167), or when the whole server's storage is full (10023) while
// messages expire. Where that can happen use allow_batched or per_key.
//
// # Delivery, reverse
//
// A message is acknowledged after the inbox has committed it. A batch's
// acknowledgements are sent together, and the server's answer to the last one
// stands for all, for it takes them in order. While messages are held longer than
// a third of ack_wait the server is told that they are being worked on.
//
// A consumer delivers what was not acknowledged only after ack_wait, and newer
// messages before that. So whoever connects to a consumer with messages pending
// resets it first, and delivery begins again behind the last acknowledgement; the
// inbox knows what it has. Servers before 2.14 cannot do that: there the source
// waits for ack_wait before it asks for messages.
//
// A consumer that is deleted while the pipeline runs is created again where it
// was. A stream that is deleted stops the pipeline; so does one that is made
// anew, whose sequence numbers would be taken for the old one's.
//
// # Errors
//
//	permanent, for one message   larger than the server's max_payload or the stream's max_msg_size; a subject
//	                             or header name that cannot be sent; a Nats- header that asks for what the
//	                             stream refuses (400)
//	fatal, for the pipeline      credentials, permissions, certificates; JetStream not enabled for the account;
//	                             stream missing, sealed, without acks, or not taking the subject; a consumer
//	                             that does not fit
//	transient                    all else: no server, no leader, timeouts, a stream or account that is full
package natsrelay
