// Package kafkarelay connects the relay to Apache Kafka 2.1 and later, and to
// servers that speak its protocol.
//
// # Keys of the sink
//
//	brokers             required; list of host:port to ask for the cluster's layout (alias bootstrap_servers)
//	topic               template of the topic (alias topic_template); the rendered subject when empty
//	acks                all (default): all in-sync replicas have the message; 1: the leader has it
//	idempotence         true (default; needs acks all): batches are numbered, see below
//	compression         none (default), gzip, snappy, lz4, zstd
//	create_topic        false (default): a missing topic stops the pipeline; true: it is created
//	partitions          of a created topic; 0 (default) is the broker's default
//	replication_factor  of a created topic; 0 (default) is the broker's default
//	max_message_bytes   largest message; also max.message.bytes of a created topic; 0 (default) is the topic's limit
//	request_timeout     30s (default): how long a broker may take to confirm a batch
//
// # Keys of the source
//
//	brokers             as above
//	topic               required; list of topics (alias topics)
//	group_id            consumer group; pgtrickle-relay.GROUP.PIPELINE when empty
//	auto_offset_reset   earliest (default) or latest: where to begin without a position
//	session_timeout     10s (default): when a member that does not answer loses its partitions
//	fetch_max_bytes     4 MiB (default): what one broker may return at a time
//	fetch_max_wait      500ms (default): how long a broker waits when there is nothing
//	isolation_level     read_committed (default) or read_uncommitted
//
// # Keys of both
//
//	client_id           pgtrickle-relay (default)
//	sasl_mechanism      PLAIN, SCRAM-SHA-256, SCRAM-SHA-512; none when empty
//	sasl_username       with sasl_mechanism
//	sasl_password       with sasl_mechanism
//	tls                 false (default); implied by the keys that follow
//	tls_ca              PEM file, or PEM text, of the authorities to trust instead of the system's
//	tls_cert, tls_key   PEM files, or PEM texts, of the client's certificate
//	tls_server_name     name in the brokers' certificates when it is not the dialled host's
//
// Server names are always verified.
//
// # A message on the wire
//
//	record key      the message's key; null without one
//	record value    the body
//	record time     when the relay sent it (the event's own time is in the envelope):
//	                retention by time must not delete a late event at once
//	headers         pgtrickle-dedup-key (the id), pgtrickle-subject (where it is not the topic's name),
//	                pgtrickle-op, pgtrickle-outbox-id, pgtrickle-full-refresh, content-type, traceparent,
//	                and the message's own; all names in lower case
//
// A key goes to the partition where the Java client would put it (murmur2).
// Messages without a key take turns over the partitions.
//
// The source reads all of this back. From a stranger's record it makes the id
// kafka:<topic>:<partition>:<offset>, the operation "event", and the topic for
// the subject. The origin is kafka:<topic>.
//
// # Delivery
//
// A partition has one request in flight, so its order survives failures. A
// Publish keeps the brokers busy side by side: up to four requests for each, of
// many partitions each. Nothing waits for company.
//
// When it stays unknown whether a broker has a batch (a lost connection, a
// timeout, a cancelled Publish) the next Publish settles that before it sends
// anything else: it sends the same numbered batch again, which the broker drops
// if it has it. Without numbers, or where the broker has forgotten them, it reads
// the end of the partition. So a running relay writes nothing twice.
//
// After a crash the sink reads back what lies behind the position of the last
// checkpoint ([relay.Resumer]): the end offset of each partition, taken from the
// brokers' confirmations. Topics that the position does not know are read from
// its time on, less five minutes for clocks that differ. A request may still have
// been on its way when its sender died, so the ends are read once more after 200
// ms. What arrives later than that (a network that delivers after a longer cut)
// is the one way to a duplicate; the header pgtrickle-dedup-key names it.
//
// The source commits, after Ack, the position before which everything is
// settled. Before a rebalance takes a partition away it waits up to a third of
// session_timeout for what is in hand. A position that retention has removed is
// an error in the log, and reading goes on at the oldest record. A relay that is
// killed keeps its partitions until session_timeout is over; one that stops
// gives them up at once. One that stops while it waits for its place in the group
// gives that wait up after a second, and the group takes it for killed.
//
// # Errors
//
// What Kafka answers, by class:
//
//	the message can never be delivered    MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE, INVALID_RECORD,
//	                                      INVALID_TIMESTAMP, INVALID_TOPIC_EXCEPTION; more than max_message_bytes;
//	                                      a topic name that Kafka does not allow; a row without the template's field
//	the pipeline stops                    a topic that does not exist (create_topic false); SASL_AUTHENTICATION_FAILED,
//	                                      UNSUPPORTED_SASL_MECHANISM, ILLEGAL_SASL_STATE; TOPIC_, GROUP_, CLUSTER_ and
//	                                      TRANSACTIONAL_ID_AUTHORIZATION_FAILED, SECURITY_DISABLED; a certificate that is
//	                                      not trusted, expired, or for another name; INVALID_REPLICATION_FACTOR,
//	                                      INVALID_PARTITIONS, INVALID_CONFIG, POLICY_VIOLATION; INVALID_REQUIRED_ACKS,
//	                                      UNSUPPORTED_VERSION, UNSUPPORTED_FOR_MESSAGE_FORMAT, UNSUPPORTED_COMPRESSION_TYPE;
//	                                      INCONSISTENT_GROUP_PROTOCOL, INVALID_GROUP_ID, INVALID_SESSION_TIMEOUT
//	transient                             everything else: NOT_LEADER_OR_FOLLOWER and LEADER_NOT_AVAILABLE (the layout is
//	                                      asked for anew), NOT_ENOUGH_REPLICAS, NOT_ENOUGH_REPLICAS_AFTER_APPEND,
//	                                      REQUEST_TIMED_OUT, KAFKA_STORAGE_ERROR, UNKNOWN_TOPIC_OR_PARTITION of a request,
//	                                      OUT_OF_ORDER_SEQUENCE_NUMBER and its like (numbers are begun anew), coordinators
//	                                      that load or move, a network that fails
//
// Several messages that are refused together are told apart: by the broker where
// it names the record, else by sending halves.
package kafkarelay
