// Package inbox writes messages to an inbox table of PostgreSQL.
//
// It is the far end of every reverse pipeline, and of the pg-inbox backend.
//
// # Columns
//
//	column         holds                                            needed
//	event_id       Message.ID; needs a unique key                   yes
//	payload        Message.Row; jsonb, json, text or bytea          yes
//	event_type     Message.Subject                                  no
//	source         Message.Origin, else the pipeline's name         no
//	aggregate_id   Message.Key                                      no
//	received_at    clock_timestamp() of the database                no
//	trace_id       the trace id of a W3C traceparent header         no
//
// A column that is not needed and does not exist is passed over, so that a table
// of the user's own will do. Names come from [Columns], then from the row that
// pgtrickle.pgt_inbox_config has for the table, then from the list above. The
// name "-" turns a column off. What is empty becomes NULL.
//
// received_at takes clock_timestamp() and not now(), so that the rows of one
// batch sort in the order in which they came.
//
// # Delivery
//
// A batch is one INSERT … ON CONFLICT (event_id) DO NOTHING: one round trip, and
// it is there whole or not at all. A message that is already there counts as
// confirmed, so delivery is effectively once for as long as the row is kept.
// Messages are inserted in the order of the batch.
//
// After sixteen batches without a duplicate the ON CONFLICT is left out, for as
// long as there is none. The unique key then refuses a batch with a duplicate,
// which the server's log shows as one error, and the batch is inserted again, with
// ON CONFLICT, in the same call.
//
// A partitioned table whose partition key is not the event id cannot have a
// unique key on the event id alone. There the sink takes an advisory lock of the
// transaction and inserts what a lookup by event id does not find, in one round
// trip as well.
//
// # Privileges
//
// USAGE on the schema and INSERT on the columns, and SELECT on the event id,
// which PostgreSQL asks of ON CONFLICT (event_id). Without that SELECT the sink
// says ON CONFLICT DO NOTHING; it refuses to do so where the table has a further
// unique key, because then PostgreSQL would also pass over, without a word, a
// message that violates that one.
//
// # Errors
//
//	SQLSTATE                                            class
//	22, 23, 44, 54, P0: the data, a constraint, a trigger   permanent
//	23514 because no partition takes the row            fatal
//	0A, 28, 3D, 3F, 42: missing table, refused login    fatal
//	all else: 08, 25006, 40, 53, 55, 57, no connection  transient
package inbox
