package relay

import "context"

// Sink is where messages go: a broker or an inbox table.
type Sink interface {
	// Publish returns nil only when the destination has durably confirmed every
	// message of batch. When some are confirmed and some are not it returns a
	// [*BatchError]; any other error means that none may be assumed durable.
	//
	// Publish does not retry: the engine calls it again with what was not
	// confirmed. It keeps the order of messages of one Key: when it reports
	// message i as failed, it has confirmed no later message of that Key and
	// reports these as failed too ([ErrHeldBack] will do). After a connection is
	// lost in the middle of a batch, nothing more of that batch is sent; the next
	// call connects anew.
	//
	// The batch is never empty. When ctx is cancelled Publish returns within a
	// second or two with what is known. Nothing of batch is retained.
	Publish(ctx context.Context, batch []Message) error

	// Close releases everything.
	Close() error
}

// Limiter is a [Sink] with a preferred size of batch.
type Limiter interface {
	// Limits returns the most messages and bytes one Publish should be given;
	// zero means that the sink does not mind.
	Limits() (messages, bytes int)
}

// Resumer is a [Sink] that can read back what it wrote, so that a new owner does
// not publish again what its predecessor had published but not checkpointed.
type Resumer interface {
	// Position marks the tail of the destination: everything confirmed so far
	// lies at or before it, and everything published later lies after it. The
	// engine stores it with checkpoints, so it does no I/O except in its first
	// call; at most 64 KiB.
	Position(ctx context.Context) (string, error)
	// Resume reads the destination from position to its present end and calls
	// seen with the ID of each message of ours that it finds, in any order. Other
	// writers' messages may lie between and are passed over. An empty position
	// is never given.
	Resume(ctx context.Context, position string, seen func(id string)) error
}

// Router is a [Sink] that can say where it would send a message.
type Router interface {
	// Destination renders the address of m, for previews and error texts.
	Destination(m *Message) (string, error)
}

// Pinger is a [Sink] or a [Source] that can say cheaply whether its far end
// answers; used by the check command.
type Pinger interface {
	Ping(ctx context.Context) error
}

// Duplicates is a [Sink] that knows which messages the far end already had.
type Duplicates interface {
	// TakeDuplicates returns the number of messages since the last call that were
	// confirmed as duplicates, and starts again from zero.
	TakeDuplicates() int
}
