package relay

import "context"

// Sink is where messages go: a broker or an inbox table.
type Sink interface {
	// Publish returns nil only when the destination has durably confirmed every
	// message of batch. When some are confirmed and some are not it returns a
	// [*BatchError]; any other error means that none may be assumed durable.
	//
	// Publish does not retry: the engine calls it again with the messages that were
	// not confirmed. It keeps the order of messages of one Key. If message i failed,
	// no later message of that Key is confirmed: each fails with [ErrHeldBack]. If a
	// connection is lost in the middle of a batch, Publish sends nothing more of that
	// batch, and the next call connects again. If some of the failed messages may have
	// arrived, their error is [Unknown].
	//
	// [Outcome] keeps these rules. The batch is never empty. When ctx is cancelled,
	// Publish returns within two seconds. Nothing of batch is retained.
	Publish(ctx context.Context, batch []Message) error

	// Close releases everything.
	Close() error
}

// Limiter is a [Sink] with a preferred size of batch.
type Limiter interface {
	// Limits returns the most messages and bytes one Publish should be given;
	// zero means any number.
	Limits() (messages, bytes int)
}

// Resumer is a [Sink] that can read back what it wrote. The engine reads back after
// a crash, and after an error that is [Unknown], so that nothing is published twice.
type Resumer interface {
	// Position returns the end of the destination: everything confirmed so far lies
	// at or before it, and everything published later lies after it. It has at most
	// 64 KiB. The engine stores it with checkpoints, so Position does no I/O except
	// in its first call. [Incarnation] identifies the destination.
	Position(ctx context.Context) (string, error)
	// Resume reads the destination from position to its present end. It calls seen
	// with the ID of each message of the relay that it finds, in any order, and passes
	// over those of other writers. position is never empty.
	Resume(ctx context.Context, position string, seen func(id string)) error
}

// Immediate is a [Resumer] without a connection on which messages could still arrive after
// their writer has ended, such as a file. The engine reads it back once, and not until two
// reads agree, so that a takeover takes 100 ms less.
type Immediate interface {
	// Immediate is never called.
	Immediate()
}

// Router is a [Sink] that knows in advance where it sends a message.
type Router interface {
	// Destination renders the address of m, for previews and error texts.
	Destination(m *Message) (string, error)
}

// Pinger is a [Sink] or a [Source] that can find out cheaply whether its far end
// answers. The check command uses it.
type Pinger interface {
	Ping(ctx context.Context) error
}

// Noter is a [Sink] for which its far end's settings have effects to report.
type Noter interface {
	// Notes returns sentences for the check command. One that asks for something to be
	// done begins with "WARNING: ".
	Notes(ctx context.Context) []string
}

// Conflicts is a [Sink] that recognises another event under the id of an earlier one.
type Conflicts interface {
	// TakeConflicts returns the number of messages since the last call that were taken
	// for duplicates of another event, and starts again from zero.
	TakeConflicts() int
}

// Duplicates is a [Sink] that knows which messages the far end already had.
type Duplicates interface {
	// TakeDuplicates returns the number of messages since the last call that were
	// confirmed as duplicates, and starts again from zero.
	TakeDuplicates() int
}

// DuplicateNamer is a [Duplicates] that knows which messages they were.
type DuplicateNamer interface {
	// DuplicateID returns the [Message.ID] of one of those that TakeDuplicates counted
	// last.
	DuplicateID() string
}
