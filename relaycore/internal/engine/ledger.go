package engine

import (
	"context"
	"errors"

	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// ErrFenced means that another owner has the pipeline, or that the ledger is on
// another server because a standby was promoted.
var ErrFenced = errors.New("another owner has taken the pipeline over, or a standby was promoted")

// Ledger is a pipeline's durable memory. Commit alone is fenced; the other methods read.
// Their errors are retried, except [ErrFenced].
type Ledger interface {
	// Commit makes all of c durable, or nothing. It returns [ErrFenced] and stores
	// nothing once another owner has the pipeline.
	Commit(ctx context.Context, c Commit) error
	// Deliverable returns at most limit stored dead letters that may be delivered now,
	// in the order in which they must be.
	Deliverable(ctx context.Context, limit int) ([]DeadLetter, error)
	// ParkedKeys returns the keys that have dead letters, in the form of Key. Later
	// messages of these keys wait.
	ParkedKeys(ctx context.Context) ([]string, error)
	// Key returns the form in which key is stored, for most keys the key itself.
	// Given a stored form it returns that.
	Key(key string) string
}

// Commit is one atomic change of a ledger.
type Commit struct {
	Checkpoint  *relay.Checkpoint // nil: as it was
	Position    string            // of the sink; "": as it was
	Delivered   int64             // messages confirmed by the sink
	Skipped     int64             // messages found to be at the sink already
	Unexpected  int64             // of the delivered, those that the sink had and should not have had
	Filtered    int64             // messages that the pipeline's filter drops
	DeadLetters []DeadLetter      // messages that are dead or parked
	Redriven    []int64           // ids of stored dead letters that are delivered now
}

// State is what a pipeline's last owner left.
type State struct {
	Checkpoint relay.Checkpoint // zero when there is none
	Source     string           // the outbox table to which Checkpoint belongs
	Position   string           // of the sink; "" when there is none
	FarEnds    string           // of a source, as it stored them; "" when there are none
	Started    bool             // an owner has run the pipeline
	Clean      bool             // the last owner stopped in good order
	Identity   string           // of the pipeline: see [relay.Env]; "" before it has run

	NoDeadLetters bool // none is stored, so none has to be looked for
}

// Classes of dead letters.
const (
	ClassDecode  = "decode"  // the source could not make sense of it
	ClassEncode  = "encode"  // it could not be put into the wanted form
	ClassRefused = "refused" // the sink refused it for good
	ClassParked  = "parked"  // it waits behind an earlier dead letter of its key

	ClassTooLarge = budget.ClassTooLarge // it is larger than the memory, or max_message_bytes, allows
)

// Refetcher is a [relay.Source] that can read a row again, for dead letters that are too
// large to be stored.
type Refetcher interface {
	// Refetch returns the messages of a row, without tokens. It calls hold with the
	// bytes of a large row before it reads it. Its error is permanent if the row is
	// gone, or too large. It is called by another goroutine than Receive.
	Refetch(ctx context.Context, outboxID int64, hold func(bytes int64) error) ([]relay.Message, error)
}

// Asker is a [relay.Source] that asks before it reads a large message.
type Asker interface {
	// Wants returns the bytes of the large message that the next Receive returns, 0 if
	// it is of the usual size. It is called by the goroutine of Receive. A Receive that
	// finds a large message returns no messages, so that Wants can be asked.
	Wants() int64
}

// DeadLetter is a message that could not be delivered, or that is parked behind one.
type DeadLetter struct {
	ID       int64 // 0 for one that is not stored yet
	Message  relay.Message
	Class    string
	Reason   string
	Attempts int
	// ByReference means that the message has no row and no body: they are read again
	// from the source to deliver it.
	ByReference bool
}

// Parked reports whether the message only waits behind a dead letter.
func (d *DeadLetter) Parked() bool { return d.Class == ClassParked }

// Mover is a [relay.Checkpointer] whose checkpoint can move although no message was
// settled, for example over rows without messages.
type Mover interface {
	// Moved can be received from once Checkpoint(nil) has something new to store.
	Moved() <-chan struct{}
}

// Recycler is a [relay.Source] that fills the slices that it returned from Receive
// again.
type Recycler interface {
	// Recycle takes back a slice that Receive returned. It is called from any
	// goroutine, at most once for a slice, and never for one that is still read.
	Recycle(batch []relay.Message)
}

// Expecter is a [relay.Checkpointer] that knows which messages are still to come.
type Expecter interface {
	// Expects reports whether a message with this ID may still be delivered, or be
	// delivered again. It answers false only when that is certain, and does no I/O.
	// known is false if the answer may stay true although the message never comes.
	Expects(id string) (expected, known bool)
}
