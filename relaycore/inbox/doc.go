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
// A column that is not needed and does not exist is left out, so any table with an
// id and a payload will do. Names come from [Columns], then from the table's row in
// pgtrickle.pgt_inbox_config, then from the list above. The name "-" turns a column
// off. An empty value becomes NULL.
//
// received_at is clock_timestamp() and not now(), so that the rows of one batch sort
// in the order in which they came.
//
// # Delivery
//
// A batch is one INSERT … ON CONFLICT (event_id) DO NOTHING: one round trip, which
// inserts the whole batch or nothing. A message that the table has counts as
// confirmed, so delivery is effectively once for as long as the row is kept.
// Messages are inserted in the order of the batch.
//
// After sixteen batches without a duplicate the sink leaves ON CONFLICT out, until
// there is one. The unique key then refuses that batch, which the server's log shows
// as an error, and the same call inserts it again with ON CONFLICT.
//
// A partitioned table whose partition key is not the event id cannot have a unique
// key on the event id alone. For such a table the sink takes an advisory lock of the
// transaction. It then inserts what a lookup by event id does not find. Both are one
// round trip.
//
// # Privileges
//
// USAGE on the schema, INSERT on the columns, and SELECT on the event id, which
// ON CONFLICT (event_id) requires. Without that SELECT the sink uses ON CONFLICT DO
// NOTHING. It refuses to do so if the table has another unique key, because
// PostgreSQL would then silently drop a message that violates that one.
//
// # Errors
//
// docs/refusals.md lists the SQLSTATEs and what the relay does with them. All else is
// transient, as are errors of the connection.
package inbox
