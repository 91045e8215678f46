package supervisor

import (
	"context"
	"log/slog"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Job is one run of a pipeline under its lease.
type Job struct {
	Pipeline catalog.Pipeline
	Epoch    int64       // of the lease
	Trusted  func() bool // reports whether the lease can be trusted at this moment
	// Stop asks the run to receive no more, to deliver what it has received, and to
	// return nil.
	Stop   context.Context //nolint:containedctx // one of the two lifetimes of a run
	Wake   <-chan struct{} // receives when the outbox has new rows
	Meter  *observe.Pipeline
	Logger *slog.Logger
	Events Events
}

// Events is what a run reports. Its methods may be called from several goroutines.
type Events interface {
	// Opened reports that both ends are open and messages can move.
	Opened(Opened)
	// Changed reports that the pipeline fails for now, or with nil that it recovered.
	Changed(err error)
}

// Opened describes a pipeline whose ends are open.
type Opened struct {
	Outbox       string       // name of the outbox table without its schema; "" for a reverse pipeline
	Lag          relay.Lagger // nil if the source cannot measure it
	PollInterval time.Duration
	Guarantee    string // of delivery, for operators
	Redrive      func() // makes the engine look at its dead letters
}
