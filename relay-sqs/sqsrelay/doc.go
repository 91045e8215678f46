// Package sqsrelay connects the relay to Amazon SQS, and to servers that speak
// its JSON protocol.
//
// # What travels
//
//	MessageBody              the body
//	MessageGroupId           FIFO: the group, see message_group_id
//	MessageDeduplicationId   FIFO: the id
//	attributes               dedup_key (the id), Pgtrickle-Subject, Pgtrickle-Op, Pgtrickle-Outbox-Id,
//	                         Pgtrickle-Full-Refresh, Pgtrickle-Key, Content-Type, and the message's headers
//
// A group or an id may have 128 characters of printable ASCII without space. Another one
// is written as its SHA-256 in hexadecimal. The attributes hold the originals.
//
// SQS allows ten attributes. The tenth, Pgtrickle-Headers, is a JSON list of
// [name, value]. It holds what does not fit, and what SQS refuses as an attribute. That is
// an empty value, a control character, or a name with characters other than a-z A-Z 0-9
// _ - and the period.
//
// The source reads all of this back. A message of another publisher gets:
//
//	id        its MessageId; with id_scope global its MessageGroupId, a space and its
//	          MessageDeduplicationId, unless the latter is missing or is the body's
//	          hash (a queue with content-based deduplication)
//	key       its MessageGroupId
//	subject   the queue's name
//	op        event
//
// The origin is sqs:QUEUE.
//
// # Delivery
//
// SQS may refuse any entry of a request and accept the others. A group therefore has one
// message in flight, and a request holds messages of up to ten groups. That is full speed
// with many keys, and a round trip for each message with a single one.
// batch_same_group puts up to ten messages of a group into a request. If SQS then
// refuses one for a passing reason and accepts the next, the two change places.
//
// A FIFO queue drops a second message with the same id within five minutes. So a retry
// writes nothing twice unless it comes later than that. A standard queue neither orders
// nor deduplicates; the attribute dedup_key lets receivers do so.
//
// The limit of a message with its attributes is the queue's MaximumMessageSize. It is
// 1 MiB since August 2025, and 256 KiB on queues that kept the old default. A request
// holds ten messages and 1 MiB.
//
// The source deletes messages after Ack, and keeps them hidden until then. A FIFO
// queue delivers nothing of a group while a message of it is hidden, so a group's
// order holds with any concurrency. When the source stops, it waits for its last
// requests and makes visible what it has not settled. After a crash that happens
// when visibility_timeout is over. SQS hides a message for at most 12 hours.
//
// # Errors
//
// docs/refusals.md lists the codes and what the relay does with them. A row without a field
// of the template is permanent. All other errors are transient.
//
// A request that SQS refuses as a whole for one of its entries is sent again
// entry by entry.
package sqsrelay
