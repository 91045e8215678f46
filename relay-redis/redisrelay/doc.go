// Package redisrelay is the backend for Redis Streams. Its name in a
// configuration is redis. It wants Redis 6.2 or later, or a server that speaks
// its protocol; 7.0 or later for the notice of entries trimmed unread.
//
// # Keys of sink and source
//
//	url               server; required. redis://USER:PASSWORD@HOST:6379/DB, rediss:// with TLS, unix:///PATH?db=N,
//	                  redis+cluster://HOST,HOST or rediss+cluster://,
//	                  redis+sentinel://HOST:26379,HOST:26379/MASTER/DB or rediss+sentinel://.
//	                  go-redis's query parameters are understood; retries, timeouts and pools are ours;
//	                  ?addr= (cluster) and ?master_name= (sentinel) work without the longer schemes.
//	                  A sentinel URL's user is the sentinels' and, unless said otherwise, the server's
//	username          ACL user, in place of the URL's
//	password          password, in place of the URL's
//	tls               TLS whatever the URL says; false
//	tls_ca            authorities to trust, in place of the system's; implies TLS
//	tls_cert, tls_key the client's certificate and its key; imply TLS
//	timeout           for a connection to be made, and for an answer; 10s
//
// # Sink keys
//
//	stream            template of streams; pgtrickle:{stream_table} (alias: stream_key)
//	maxlen            trim to about so many entries (MAXLEN ~); 0, never
//	minid             trim below this id, or what is older than this duration (MINID ~); never
//	resume            read the tail back after a crash or a lost answer; true
//	wait_replicas     replicas that must have a batch before it counts (WAIT); 0
//	wait_timeout      how long to wait for them; 5s
//
// A transaction trims each stream once, with its last entry.
//
// # Source keys
//
//	stream            stream to read; required (alias: stream_key)
//	group             consumer group; pgtrickle:GROUP:PIPELINE (alias: group_name)
//	consumer          name within the group; pgtrickle-relay (alias: consumer_name)
//	start_id          where a group that is created begins: 0, $ or an entry id; 0
//	block             how long one read waits at the server; 5s
//	claim_idle        take over what any consumer has left unacknowledged so long; 60s, 0 is never
//
// A stream and a group that do not exist are created. The consumer's name is the
// same for every owner of the pipeline, so that the next one gets at once what
// the last one left.
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
// redis:STREAM:ENTRY-ID; one without payload becomes a JSON object of its fields
// (and a dead letter if these are not text). Its op is event unless it says
// otherwise, its subject the stream unless it says otherwise, its origin
// redis:STREAM, its time that of the entry's id.
//
// # Delivery, forward
//
// A batch is added by MULTI and EXEC, at most 1000 entries and 4 MiB at a time,
// and counts when EXEC has been answered. A bare pipeline would go on behind an
// entry that was refused for want of memory, and put a key's entries in the wrong
// order; a script would be atomic too, at twice the cost to the server. go-redis
// never sends anything again by itself.
//
// An answer that is lost leaves it open whether the transaction was carried out.
// The next Publish reads the streams' tails first and adds only what is not
// there. A new owner does the same from the position stored with the last
// checkpoint: it reads each stream's entries behind that, in pages of about
// 4 MiB. Streams that were begun after the checkpoint are known from the template
// where it consists of {stream_table} and {op}; for others the keys are searched
// by SCAN. So a message is added once, but for three cases: the tail was trimmed
// before the next owner could read it; a server that was cut off carries out a
// transaction after its successor has looked; wait_replicas, where what too few
// replicas have is added again, on purpose.
//
// After a transaction that was refused or not answered the sink connects anew, so
// that it follows a name that leads to another master, although the old one is
// still there as a replica and answers READONLY.
//
// In a cluster a transaction lives on one node: a batch is sorted by stream, and
// each stream's part added in turn. Order holds within each stream.
//
// A confirmation is as durable as Redis is: with appendfsync everysec a crash
// loses up to a second, and a failover to a replica that lacks the tail loses
// that tail, of entries already confirmed. The sink says so in the log when it
// finds a stream to end before its position; it cannot bring them back, replay
// can. wait_replicas makes that unlikely, min-replicas-to-write helps, appendfsync
// always halves the throughput.
//
// # Delivery, reverse
//
// Entries are read by XREADGROUP and acknowledged by XACK after the inbox commit.
// At the start, and after a read that failed, the consumer's own pending entries
// come first. XAUTOCLAIM takes over what other consumers have left. What is in
// flight never comes twice within a process.
//
// Entries that are trimmed or deleted before they were read or acknowledged are
// lost, which is logged as an error with their number: pending ones when they are
// met, unread ones by comparing the stream's counters every 30 seconds.
//
// The order is that of the stream. A read waits at the server on a connection of
// its own, which is closed when the read is broken off.
//
// # Permissions
//
// Sink: PING TIME MULTI EXEC XADD, with resume XRANGE XREVRANGE and, for templates
// that look into rows, SCAN; with wait_replicas WAIT. CONFIG GET is tried, for
// proto-max-bulk-len, and not needed. Source: PING XGROUP XREADGROUP XACK, with
// claim_idle XAUTOCLAIM; XINFO to notice trimming; XRANGE for the lag.
//
// # Errors
//
//	OOM, READONLY, LOADING, MISCONF, NOREPLICAS, MASTERDOWN    transient; nothing of the transaction was added
//	CLUSTERDOWN, TRYAGAIN, MOVED, ASK, BUSY                    transient
//	no connection, no answer, too few replicas                 transient
//	NOGROUP                                                    transient; the group is created again where it was
//	a body larger than proto-max-bulk-len                      permanent
//	a row without a field of the template                      permanent
//	WRONGTYPE, NOPERM, WRONGPASS, NOAUTH, no such database     fatal
//	an unknown command, a certificate that is not trusted      fatal
package redisrelay
