// Package rows turns rows of an outbox table into messages.
//
// A [Layout] is the list of columns that a read selects. A [Builder] decodes the rows
// of one read into a chunk: its messages, and a [Slot] for each of them. Package
// progress follows a message by its slot.
//
// # Messages
//
// An ID is "<outbox table>:<id>:<index>". Index counts the inserted, updated and
// deleted rows of a container in stored order, and the rows of a claim check by
// row_num. FullRefresh is never set on a delete. The extension's column __pgt_row_id
// stays in the row: it is data, and some stream tables have no other key.
//
// A payload of another version, or a malformed one, becomes one message with Err set
// and the payload as its Body. So does a claim check whose deltas are gone. Counts
// without a payload, and empty containers, are rows without messages. They have a slot,
// so that they move the checkpoint.
package rows
