// Package pginboxrelay is the relay's pg-inbox backend: a sink that writes to an
// inbox table of another PostgreSQL database. It has no source; an outbox of
// that database is read by a relay whose --postgres-url names it.
//
// # Columns
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
// command warns of both.
//
// # Errors
//
// docs/refusals.md lists the SQLSTATEs and what the relay does with them.
//
// A batch with a permanent error is rolled back whole; the engine finds the
// message by bisection and delivers the others.
package pginboxrelay
