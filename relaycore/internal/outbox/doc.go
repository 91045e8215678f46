// Package outbox reads outbox tables. No committed row is passed over, and rows of a key
// come in the order in which they were committed. No writer waits for the reader, and no
// row waits for the transaction of another. docs/outbox-reading.md has the proof,
// docs/model a model that a test explores exhaustively, and package adversary tries to
// refute both.
//
// # The way of a row
//
// [Source.Receive] asks its reader for messages. Package pace decides when it reads, and
// how many rows at once. The reader takes a connection. The scanner of package scan
// chooses the next rows, and package rows makes messages of them. The tracker of package
// progress follows these until the engine settles them with [Source.Checkpoint]. Package
// table describes the table to all of these, and imports none of them.
//
// [Open] finds the table, the strategy and the position to continue after. A reader keeps
// what Open found. If its table or its server changes, it returns an error that asks to
// reopen. Source.receive then opens the outbox again, once the reader has released its
// connection, and goes on with a new reader.
//
// # Which table
//
// A pipeline's stream_table is looked up in pgt_outbox_config first: as the name of an
// outbox table, as "schema.stream_table", as a stream table. The outbox's name is never
// derived from it. Otherwise it names a table of the user's own, or one in schema
// pgtrickle.
//
// A table with a column is_claim_check holds containers of deltas, in the extension's
// format or the relay's. With payload_column, op_column, key_column or headers_column
// set, or without is_claim_check, each row of the table is one event. Its payload is the
// event, op_column has its operation (insert if there is none), and key_column its key.
// The members of the object in headers_column become headers.
//
// # Snapshots
//
// A row of the extension's outbox is a snapshot of the stream table. Under a lease, and
// unless the pipeline is to emit it, its payload stays on the server. The reader takes the
// row for a claim check: package snapshot compares it, and the stored changes are its
// deltas.
//
// # Strategies
//
// Tables with an indexed column of type xid8 that defaults to pg_current_xact_id() are
// read by snapshot windows, all others by the gap fence. A change from one to the other
// continues after the last id up to which everything is settled, and may repeat rows.
package outbox
