// Package redisrelay is the backend for Redis Streams. Its name in a configuration is
// redis; docs/config.md lists its keys. It needs Redis 6.2 or later, or a server that
// speaks its protocol; 7.0 or later to notice entries trimmed unread.
//
// # Addresses
//
//	redis://USER:PASSWORD@HOST:6379/DB     rediss:// with TLS
//	unix:///PATH?db=N
//	redis+cluster://HOST,HOST              also rediss+cluster://, or ?addr= for more hosts
//	redis+sentinel://HOST,HOST/MASTER/DB   also rediss+sentinel://, or ?master_name=
//
// go-redis's query parameters are understood, except for retries, timeouts and pools.
// A sentinel URL's user is for the sentinels and, unless set otherwise, for the server.
//
// # What travels
//
//	dedup_key             the message's id
//	subject, op           the rendered subject; insert, update or delete
//	payload               the format's bytes
//	pgtrickle-outbox-id   and pgtrickle-full-refresh, pgtrickle-key, content-type
//	traceparent           and the message's other headers, in lower case
//
// A header that bears the name of one of the first four has "header:" before it.
// The source reads all of this back. An entry without dedup_key has the id
// redis:STREAM:ENTRY-ID. One without payload becomes a JSON object of its fields, or a
// dead letter if these are not text. Without fields for them, its op is event and its
// subject the stream. Its time is that of its id, and its origin redis:STREAM.
//
// # Delivery, forward
//
// A batch is added by MULTI and EXEC, at most 1000 entries and 4 MiB at a time, and is
// confirmed when EXEC is answered. A bare pipeline would continue after an entry that was
// refused for lack of memory, and put a key's entries in the wrong order. A script
// would be atomic too, at twice the cost to the server. go-redis never sends anything
// again by itself. A transaction trims each stream once, with its last entry.
//
// After a lost answer it is unknown whether the transaction was executed. The engine
// then reads back the streams from the last position, and publishes only what is
// missing. A new owner does so from the position of the last checkpoint. Each stream's
// entries after the position are read in pages of about 4 MiB. Streams begun after it
// are known from a template of {stream_table} and {op}; for other templates SCAN
// searches the keys. So a message is added once, except in three cases:
//
//   - the tail was trimmed before it could be read back;
//   - a server that was disconnected executes a transaction after the tail was read;
//   - with wait_replicas, what too few replicas have is added again, on purpose.
//
// After a transaction that was refused or not answered the sink connects again. So it
// follows a name that leads to another master, even if the old one is still there as
// a replica and answers READONLY.
//
// In a cluster a transaction runs on one node: a batch is sorted by stream, and each
// stream's part is added in turn. The order holds within each stream.
//
// A confirmation is as durable as Redis is. With appendfsync everysec a crash loses up
// to a second. A failover to a replica that lacks the tail loses that tail, of entries
// already confirmed. The sink logs an error when a stream ends before its position;
// replay brings the entries back. wait_replicas makes the loss unlikely,
// min-replicas-to-write helps, appendfsync always halves the throughput.
//
// # Delivery, reverse
//
// A stream and a group that do not exist are created. Entries are read by XREADGROUP
// and acknowledged by XACK after the inbox commit. The consumer's name is the same for
// every owner of the pipeline, so the next one gets at once what the last one left. At
// the start, and after a read that failed, the consumer's own pending entries come
// first. XCLAIM takes over what other consumers have left. An entry in flight is
// never delivered twice within a process.
//
// Entries that are trimmed or deleted before they are read or acknowledged are lost.
// The source logs an error with their number, and stores it in the pipeline's cursor. New
// entries are read in a transaction with a script, which compares the stream's counters with
// the group's. It leaves a note at the server: a group GROUP:unread:NUMBER:ENTRY. The source
// removes it once it has reported the loss. So no crash hides one. An entry that XDEL
// removes between others is not counted. A user that may not run scripts compares every
// 200 ms, and can pass by what was trimmed in between.
//
// Redis gives a stream no identity. The pipeline's cursor has its name and the group's.
// If the group is gone, its stream or the group was deleted. If the stream ends before
// the group's position, it was created again or lost entries. The pipeline then stops,
// or with on_recreated restart reads the stream from its beginning in a new group. The
// ids of messages then count these beginnings: redis:STREAM@.1:ENTRY. If the position
// is known, create the group there, and the pipeline continues.
//
// The order is that of the stream. A read waits at the server on a connection of its
// own, which is closed when the read is cancelled.
//
// # Permissions
//
// Sink: PING TIME MULTI EXEC XADD, with resume XRANGE XREVRANGE and, for templates
// that look into rows, SCAN; with wait_replicas WAIT. CONFIG GET is tried, for
// proto-max-bulk-len, and not needed. Source: PING XGROUP XREADGROUP XACK, and
// XRANGE for the lag. To notice trimming: MULTI EXEC EVAL XINFO XREAD, with claim_idle also
// EVALSHA XPENDING XCLAIM XRANGE. Without these claim_idle needs XAUTOCLAIM.
//
// # Errors
//
// docs/refusals.md lists the replies and what the relay does with them. A reply that is
// not listed, no connection, no answer and too few replicas are transient, and nothing of
// the transaction was added. A body larger than proto-max-bulk-len and a row without a
// field of the template are permanent. A certificate that is not trusted is fatal.
package redisrelay
