// Package sqsrelay connects the relay to Amazon SQS, and to servers that speak
// its JSON protocol.
//
// # Keys of the sink
//
//	queue_url           required; a name that ends in .fifo makes it a FIFO queue
//	message_group_id    FIFO: template of the message group; the message's key when empty,
//	                    and a group of its own for a message without key
//	batch_same_group    FIFO: false (default); true lets one request hold several messages of a group
//	concurrency         4 (default): requests at a time
//
// # Keys of the source
//
//	queue_url           as above
//	max_messages        10 (default): messages to ask for in one request
//	wait_time_seconds   2 (default): how long a request waits when there is none; more makes
//	                    fewer requests, and as many seconds of a stop while the queue is empty
//	visibility_timeout  30 (default): seconds for which a received message stays hidden;
//	                    extended for as long as the relay has it
//	concurrency         2 (default): requests at a time; a standard queue read by one keeps
//	                    what order it has
//
// # Keys of both
//
//	region              AWS region; that of queue_url when empty
//	endpoint            server instead of AWS; that of queue_url when its host is not at amazonaws.com
//	access_key_id       static credentials; the SDK's chain when empty
//	secret_access_key   with access_key_id
//	session_token       when access_key_id is a temporary one
//	role_arn            role to assume with the credentials
//	request_timeout     10s (default): how long a request may take, a long poll's wait not counted
//
// # A message on the wire
//
//	MessageBody              the body
//	MessageGroupId           FIFO: the group, see message_group_id
//	MessageDeduplicationId   FIFO: the id
//	attributes               dedup_key (the id), Pgtrickle-Subject, Pgtrickle-Op, Pgtrickle-Outbox-Id,
//	                         Pgtrickle-Full-Refresh, Pgtrickle-Key, Content-Type, and the message's headers
//
// A group or an id of more than 128 characters, or with others than printable
// ASCII without space, is written as its SHA-256 in hexadecimal. The attributes
// hold the originals.
//
// SQS allows ten attributes. What does not fit, and what SQS would not take for an
// attribute (an empty value, a name with other characters than a-z A-Z 0-9 _ - .,
// a control character) goes into the tenth, Pgtrickle-Headers, as a JSON list of
// [name, value].
//
// The source reads all of this back. A stranger's message gets its
// MessageGroupId, a space and its MessageDeduplicationId for an id, unless the
// latter is the body's hash (a queue with content-based deduplication; the same
// body may come again), else its MessageId; its MessageGroupId for a key, the queue's name for a subject, and
// the operation "event". The origin is sqs:<queue>.
//
// # Delivery
//
// SQS may refuse any entry of a request and take the others. A group therefore
// has one message in flight, and a request takes messages of up to ten groups:
// full speed with many keys, a round trip for each message with a single one.
// batch_same_group puts up to ten messages of a group into a request. Should SQS
// then refuse one for a passing reason and take the next, the two change places.
//
// A FIFO queue drops a second message with the same id within five minutes, so
// a retry writes nothing twice unless it comes later than that. A standard queue
// neither orders nor deduplicates; the attribute dedup_key lets receivers do so.
//
// The limit of a message with its attributes is the queue's MaximumMessageSize:
// 1 MiB since August 2025, 256 KiB on queues that kept the old default. A request
// holds ten messages and 1 MiB.
//
// The source deletes messages after Ack, and keeps them hidden until then. A
// FIFO queue gives nothing of a group while a message of it is out, so a group's
// order holds with any concurrency. When the source stops it lets its last requests
// end, as SQS would give messages to those that nobody waits for, too, and then
// makes visible what it has not settled. After a crash that happens when visibility_timeout is over.
// SQS lets nobody hide a message for more than 12 hours.
//
// # Errors
//
//	the message can never be delivered   a body that is empty, is not UTF-8, or has characters that XML has not (SQS:
//	                                     InvalidMessageContents); a message above the limit (MessageTooLong,
//	                                     BatchRequestTooLong); InvalidParameterValue, InvalidAttributeValue,
//	                                     MissingParameter, and any other entry for which SQS blames the sender;
//	                                     a row without the template's field
//	the pipeline stops                   QueueDoesNotExist; AccessDenied, InvalidClientTokenId, UnrecognizedClientException,
//	                                     SignatureDoesNotMatch, InvalidSecurity, MissingAuthenticationToken, ExpiredToken of a
//	                                     static session_token; InvalidAddress, UnsupportedOperation; KmsAccessDenied,
//	                                     KmsDisabled, KmsNotFound, KmsInvalidState, KmsInvalidKeyUsage, KmsOptInRequired
//	transient                            everything else: RequestThrottled, OverLimit, KmsThrottled, InternalError,
//	                                     ServiceUnavailable, QueueDeletedRecently, a network that fails
//
// A request that SQS refuses as a whole for one of its entries is sent again
// entry by entry.
package sqsrelay
