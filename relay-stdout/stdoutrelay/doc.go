// Package stdoutrelay is the backend for standard output, standard input and
// files. Its names in a configuration are stdout, file and stdin.
//
// # Sink keys
//
//	format        jsonl (default), json_pretty, csv or raw
//	path          file to append to; standard output without it (alias: output)
//	rotate_bytes  size beyond which path becomes path.1; 0, the default, never rotates
//	keep          rotated files to keep, 10; 0 keeps all
//
// The pipeline's own key format (envelope, payload, cloudevents, debezium) says
// what a message's body is; the sink's format says how bodies are laid out:
//
//	jsonl        the body on a line; white space around its line breaks is dropped
//	json_pretty  the body, indented
//	csv          a line with dedup_key, subject, op, key, outbox_id, time, body,
//	             under a line with these names
//	raw          the body's bytes, and nothing between two bodies
//
// A batch is one write. Into a file it is followed by fsync, and only then is it
// confirmed. A batch is never split between two files. A file that was moved or
// deleted by somebody else (logrotate) is begun again; no signal is needed. A
// path that is a pipe or a device is written to as standard output is.
//
// # Delivery
//
// After a failed write, on a full disk for one, the file is cut back to the last
// batch that was whole; the engine tries again for as long as it takes. A line
// that a crash has left torn is cut off when the file is opened.
//
// After a crash the sink reads back the ids in the file's tail, also through
// rotation, and the engine skips what is there: effectively once. The id is the
// dedup_key of the envelope, the id of a CloudEvents event, or the column of a
// CSV line. Other bodies carry none, and raw has no lines; these are written at
// least once, as is everything on standard output.
//
// A reader of standard output or of a pipe that stalls is waited for, until the
// pipeline is stopped. A message that a write was cut in is completed before
// another one begins, whichever pipeline of the process that comes from. A named
// pipe is opened when a reader has it open.
//
// Errors: a directory that does not exist and a permission that is missing stop
// the pipeline until an operator acts. A body that is not JSON and does not fit
// on a line is refused for good (permanent). All else is transient.
//
// # Source keys
//
//	path      file to read; standard input without it (alias: input)
//	follow    wait for more at the end of the file, and follow it through rotation; false
//	max_line  longest line, 16 MiB; a longer one becomes a dead letter with its beginning
//
// Every line that is not empty is one message: an envelope as the sink writes it,
// or any other JSON value. What is not JSON becomes a dead letter.
//
//	id       dedup_key of the envelope; else file:NAME:OFFSET for a file, and
//	         stdin:OFFSET:CHECKSUM for standard input. Once path has led to another
//	         file, or its file was emptied, ids are file:NAME:GENERATION:OFFSET.
//	op       of the envelope, else event
//	subject  of the envelope, else empty
//	origin   file:NAME or stdin
//
// Where a file has been read up to is kept in the pipeline's cursor, together
// with the file's inode and a checksum of its first bytes, and written in one
// transaction with dead letters; after a crash the lines behind it are read again,
// and the inbox knows their ids. Without follow the pipeline idles at the end of
// the file.
//
// A followed file is read to its end after it has been renamed to path.1, then
// path.2 and so on, also while the relay was down. It is left two seconds after
// both the next file has been written to and nothing more has come into it, so
// that writers have time to open the next one; at once where that has been renamed
// too. Where rotation has deleted the file before it was left, the oldest file
// that was written to since comes next, and the log warns of what is lost; where
// there is none, the file at path comes next, however old it says it is. A file
// that was emptied while the relay was down (copytruncate) counts as deleted: its
// copy is read from the beginning.
//
// Standard input cannot be read twice. A reloaded pipeline loses nothing of it,
// but what was read and not stored when the process dies is lost.
package stdoutrelay
