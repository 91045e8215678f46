// Package stdoutrelay is the backend for standard output, standard input and
// files. Its names in a configuration are stdout, file and stdin.
//
// # What travels
//
// The pipeline's own key format (envelope, payload, cloudevents, debezium) decides
// what a message's body is. The sink's format decides how bodies are laid out:
//
//	jsonl        the body on a line; line breaks around its values are dropped
//	json_pretty  the body, indented
//	csv          a line with dedup_key, subject, op, key, outbox_id, time, body,
//	             under a line with these names
//	raw          the body's bytes, and nothing between two bodies
//
// The source makes a message of every line that is not empty: an envelope as the
// sink writes it, or any other JSON value. Other text becomes a dead letter.
//
//	id       dedup_key of the envelope; else file:NAME:OFFSET for a file, and
//	         stdin:OFFSET:CHECKSUM for standard input. After path was set to
//	         another file, ids are file:NAME:GENERATION:OFFSET.
//	op       of the envelope, else event
//	subject  of the envelope, else empty
//	origin   file:NAME or stdin
//
// # Delivery to a file
//
// A batch is one write. Into a file it is followed by fsync, and only then is it
// confirmed. A batch is never split between two files. The sink begins a new file
// after another process (logrotate) has moved or deleted the old one; it needs no
// signal.
//
// After a failed write, for example on a full disk, the sink truncates the file to
// the last whole batch. The engine retries without limit.
//
// After a crash the sink removes a message that was left torn, if the stored position
// proves that the file is its own. Any other file keeps all its bytes: the sink only
// appends, on a new line. It creates files with mode 0640 and follows no link at path.
// The check command opens nothing for writing.
//
// After a crash the sink reads back the ids in the file's tail, also through
// rotation, and the engine skips what is there: effectively once. The id is the
// dedup_key of the envelope, the id of a CloudEvents event, or the column of a
// CSV line. Other bodies carry none, and raw has no lines: these are written at
// least once.
//
// # Delivery to standard output
//
// A path that is a pipe or a device is written to as standard output is: at least
// once. The sink waits for a reader that stalls until the pipeline is stopped. It
// completes a message that a write was cut in before it writes another one, even
// if that comes from another pipeline of the process. A named pipe needs a reader
// when the first message is written.
//
// # Delivery from a file
//
// The pipeline's checkpoint holds how far a file has been read, with the file's
// path and inode and a checksum of the last lines. It is stored in one
// transaction with dead letters. After a crash the lines after it are read again,
// and the inbox knows their ids. Without follow the pipeline idles at the end of
// the file.
//
// A file must only grow. The source compares the bytes before its position with
// those that it read there, with every read and after a restart. Before the first
// lines are received the cursor has a checksum of them, which is compared too. A
// file that was replaced, renamed, deleted, cut (logrotate's copytruncate) or
// overwritten stops the pipeline with an error. A change that leaves the inode, the
// first lines and the last 4 KiB before the position as they were cannot be noticed.
//
// To continue after a rename, set path to the name that the old file has now. The
// source knows it by its inode and reads the rest. Then set path back: the new
// file is read from its beginning, and its lines have new ids. A file that was cut
// or overwritten is read as a new one under another name.
//
// A checkpoint of an older version names no path. If its file is no longer at
// path, the source logs a warning and reads path from the beginning.
//
// Standard input cannot be read twice. A reloaded pipeline loses nothing of it,
// but what was read and not stored when the process dies is lost.
//
// # Errors
//
//	a body that is not JSON and does not fit on a line   permanent
//	a line that is not JSON or is longer than max_line   permanent
//	a file of a source that did not only grow            fatal
//	an error of the system                               see docs/refusals.md
package stdoutrelay
