// Package pginboxrelay is the relay's pg-inbox backend: a sink that writes to an
// inbox table of another PostgreSQL database. It has no source; an outbox of
// that database is read by a relay whose --postgres-url names it.
//
// # Keys
//
// Written flat with the prefix pg_inbox_, or nested inside "sink".
//
//	key                   default       meaning
//	url                   required      connection URL or keyword/value string of the database; TLS by sslmode,
//	                                    sslrootcert, sslcert, sslkey; several hosts with target_session_attrs
//	table                 required      inbox table, or schema.table (also: inbox_table, inbox)
//	schema                pgtrickle     schema of the table (also: inbox_schema)
//	id_column             event_id      column of the event's id; it needs a unique key
//	payload_column        payload       column of the row: jsonb, json, text or bytea
//	event_type_column     event_type    column of the rendered subject
//	source_column         source        column of the pipeline's name
//	aggregate_id_column   aggregate_id  column of the key
//	received_at_column    received_at   column of the database's clock
//	trace_id_column       trace_id      column of the trace id
//	max_connections       2             connections of the pipeline's own pool
//	confirm_timeout       30s           a batch that is not confirmed by then is tried again (also: timeout)
//
// A column that a key names must exist. The names of the other columns come from the
// database's pgtrickle.pgt_inbox_config if the table is registered there, and from
// the defaults otherwise. All but the id and the payload may be missing. "-" leaves a
// column alone.
//
// Behind a pooler in transaction mode add default_query_exec_mode=exec to the URL.
//
// # Mapping
//
//	message                    column
//	ID                         event_id
//	Row (not the format's body) payload
//	Subject                    event_type
//	the pipeline's name        source
//	Key                        aggregate_id
//	header traceparent         trace_id
//
// Headers other than traceparent, and the operation, have no column: put {op}
// into subject_template, as its default does.
//
// # Delivery
//
// Effectively once: a message whose id is in the table counts as confirmed and
// changes nothing. That holds for as long as the row is kept. A batch is one
// transaction, so it arrives whole, in order. See package inbox for what happens
// with partitioned tables and for the privileges that the role needs.
//
// Only synchronous_commit=off and an unlogged table weaken this; the check
// command says when it finds one.
//
// # Errors
//
//	what                                                          class
//	connection refused, lost or timed out, server starting        transient
//	serialization failure, deadlock, lock or statement timeout    transient
//	disk full, too many connections, read-only standby            transient
//	data the column does not take (class 22), a violated          permanent for the message
//	constraint (23, 44), a row too big (54), a trigger's refusal (P0)
//	no such database, table or column, refused login, missing     fatal
//	privilege (28, 3D, 3F, 42), no partition for the row
//
// A batch with a permanent error is rolled back whole; the engine finds the
// message by bisection and delivers the others.
package pginboxrelay
