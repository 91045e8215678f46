package relay

import (
	"context"
	"encoding/json"
)

// Source is where messages come from: an outbox table or a broker.
type Source interface {
	// Receive waits until there is at least one message and returns at most limit
	// of them, in order. It returns what is there and does not wait for more. When
	// ctx ends it returns ctx's error. It does not retry: after any other error the
	// engine backs off and calls it again. A source that lost its connection connects
	// again in the next call.
	//
	// An error wrapped by [Fatal] stops the pipeline.
	Receive(ctx context.Context, limit int) ([]Message, error)

	// Ack acknowledges that every message of batch is settled: durable at the sink,
	// or stored as a dead letter or parked behind one. Messages of one Key are
	// acknowledged in order; two keys may overtake each other, for which there is
	// [Acks]. What is never acknowledged must be delivered again, by this process or
	// the next. Ack returns nil only when the acknowledgement is as durable as the
	// broker makes it.
	Ack(ctx context.Context, batch []Message) error

	// Close releases everything. After the context of a running Receive is
	// cancelled, Close returns within a second or two.
	Close() error
}

// Checkpointer is a [Source] whose broker keeps no acknowledgements. In place of Ack
// the engine calls Checkpoint and stores the result in the pipeline's cursor. The
// cursor is fenced by the lease's epoch, and is stored together with any dead
// letters. The next owner's source gets it in [Env].
type Checkpointer interface {
	Source
	// Checkpoint marks batch as settled and returns the state from which a new
	// source would deliver exactly what is not settled. It does no I/O.
	Checkpoint(batch []Message) (Checkpoint, error)
	// Committed reports that the checkpoint is now durable.
	Committed(ctx context.Context, c Checkpoint) error
}

// Checkpoint is how far the messages of a source are settled.
type Checkpoint struct {
	// State is the source's own, opaque to all others.
	State json.RawMessage
	// LastID is the outbox id up to which everything is settled; it never falls.
	LastID int64
}

// Lagger is a [Source] that knows how far it is behind.
type Lagger interface {
	// Lag returns the rows not yet received and the age in seconds of the oldest
	// of them; zero when there is none. rows is -1 when only the age is known.
	Lag(ctx context.Context) (rows int64, seconds float64, err error)
}
