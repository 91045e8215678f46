// Package outbox reads outbox tables: no committed row is passed over, rows of a
// key come in the order in which they were committed, no writer waits for the
// reader and no row for another's transaction. docs/outbox-reading.md has the
// proof, docs/model a model that is walked through exhaustively, and package
// adversary tries to refute both.
//
// # Which table
//
// A pipeline's stream_table is looked for in pgt_outbox_config first: as the name
// of an outbox table, as "schema.stream_table", as a stream table. The outbox's
// name is never derived. Else it is a table of one's own, by its name, or by its
// name in schema pgtrickle.
//
// A table with a column is_claim_check holds containers of deltas, the extension's
// or ours. With payload_column, op_column, key_column or headers_column set, or
// without is_claim_check, each row of the table is one event: payload is the event,
// op_column its operation (insert where there is none), key_column its key,
// headers_column an object whose members become headers.
//
// # Messages
//
// An ID is "<outbox table>:<id>:<index>", where index counts the inserted, updated
// and deleted rows of a container in stored order, and the rows of a claim check by
// row_num. FullRefresh is never set on a delete. A column __pgt_row_id of the
// extension's stays in the row: it is data, and the only key that some stream
// tables have; but it does not count as a primary key.
//
// A payload that cannot be understood, of another version or malformed, becomes one
// message with Err set and the payload as its Body. A claim check whose deltas are
// gone does too. Counts without a payload, and empty containers, are rows without
// messages; they move the checkpoint.
//
// # Strategies
//
// [windows] for tables with a column of type xid8 that defaults to
// pg_current_xact_id() and is indexed, [fence] for all others. A change from one to
// the other goes on from the last id below which everything is settled, and may
// repeat rows.
package outbox
