package relay

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"sync"
	"sync/atomic"
)

// errUnreported is the error of a message for which a sink reported no outcome.
var errUnreported = errors.New("the sink reported no outcome")

// Outcome records what became of each message of one Publish, by index, and makes
// the error that Publish returns.
//
// Every message starts out open. Confirm, Fail and Held settle one message,
// ConfirmRest and FailRest settle all that are still open. A failed message stays
// failed: a late Confirm changes nothing.
//
// A sink that keeps an Outcome and calls Begin for each batch allocates nothing as
// long as all messages are confirmed. Confirm, Fail and Held may be called from
// several goroutines at a time, each for messages of its own. All other methods
// need the caller's exclusion.
type Outcome struct {
	batch  []Message
	state  []byte // open, confirmed or failed, by index
	closed bool

	failures atomic.Int64 // messages in failed; read before mu is taken
	mu       sync.Mutex
	failed   map[int]error
	keys     map[string]int // by key: the first message that failed
}

// States of a message. An open one is zero, so that Reset can clear them all.
const (
	stateOpen byte = iota
	stateConfirmed
	stateFailed
)

// NewOutcome returns the outcome of batch, with every message open.
func NewOutcome(batch []Message) *Outcome {
	o := new(Outcome)
	o.Reset(batch)
	return o
}

// Begin is Reset at the beginning of a Publish. With an error, [ErrClosed] after Close or
// that of ctx, nothing may be sent.
func (o *Outcome) Begin(ctx context.Context, batch []Message) error {
	if o.closed {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	o.Reset(batch)
	return nil
}

// Close makes each later Begin fail. The sink's own Close calls it.
func (o *Outcome) Close() { o.closed = true }

// Reset starts again with batch, with every message open. It reuses the memory of
// the batch before. Reset(nil) releases that batch.
func (o *Outcome) Reset(batch []Message) {
	o.batch = batch
	if cap(o.state) < len(batch) {
		o.state = make([]byte, len(batch))
	}
	o.state = o.state[:len(batch)]
	clear(o.state)
	o.failed = nil // it may belong to a BatchError
	clear(o.keys)
	o.failures.Store(0)
}

// Confirm records that message i is durable at the destination.
func (o *Outcome) Confirm(i int) {
	if o.state[i] == stateOpen {
		o.state[i] = stateConfirmed
	}
}

// Confirmed reports whether message i was confirmed.
func (o *Outcome) Confirmed(i int) bool { return o.state[i] == stateConfirmed }

// Fail records that message i is not confirmed. A later call replaces the error.
func (o *Outcome) Fail(i int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.state[i] = stateFailed
	if o.failed == nil {
		o.failed = make(map[int]error)
	}
	o.failed[i] = err

	if key := o.batch[i].Key; key != "" {
		if o.keys == nil {
			o.keys = make(map[string]int)
		}
		if first, ok := o.keys[key]; !ok || i < first {
			o.keys[key] = i
		}
	}
	o.failures.Store(int64(len(o.failed)))
}

// Failed reports whether message i has failed.
func (o *Outcome) Failed(i int) bool { return o.state[i] == stateFailed }

// Held reports whether an earlier message of the key of message i has failed, and
// fails message i with [ErrHeldBack] if so. A sink asks before it sends message i.
func (o *Outcome) Held(i int) bool {
	key := o.batch[i].Key
	if key == "" || o.failures.Load() == 0 {
		return false
	}
	o.mu.Lock()
	first, failed := o.keys[key]
	o.mu.Unlock()
	if !failed || i <= first {
		return false
	}
	o.Fail(i, ErrHeldBack)
	return true
}

// ConfirmRest confirms all messages that are open.
func (o *Outcome) ConfirmRest() {
	for i := range o.state {
		o.Confirm(i)
	}
}

// FailRest fails all messages that are open with err.
func (o *Outcome) FailRest(err error) {
	for i, state := range o.state {
		if state == stateOpen {
			o.Fail(i, err)
		}
	}
}

// Err returns the error for Publish to return. It is nil if all messages are
// confirmed, and the error itself if one error failed them all and is not permanent.
// Otherwise it is a [*BatchError]. A message that is still open counts as failed.
//
// Err also keeps the order of keys: it fails each message behind a failed one of
// its key. Such a message that was confirmed is at the destination already, so its
// error is [Unknown].
func (o *Outcome) Err() error {
	if o.failures.Load() == 0 && bytes.IndexByte(o.state, stateOpen) < 0 {
		return nil
	}
	o.FailRest(errUnreported)
	o.holdBack()
	if err := o.common(); err != nil {
		return err
	}
	return &BatchError{Failed: o.failed}
}

// holdBack fails every confirmed message behind a failed one of its key.
func (o *Outcome) holdBack() {
	failed := make(map[string]bool)
	for i := range o.batch {
		key := o.batch[i].Key
		switch {
		case key == "":
		case o.state[i] == stateFailed:
			failed[key] = true
		case failed[key]:
			o.Fail(i, Unknown(ErrHeldBack))
		}
	}
}

// common returns the error that failed all messages, if there is one and it is not
// permanent. Messages held back before they were sent count as failed by it.
func (o *Outcome) common() error {
	if len(o.failed) < len(o.batch) {
		return nil
	}
	var one error
	for _, err := range o.failed {
		switch {
		case err == ErrHeldBack: //nolint:errorlint // and not one that is Unknown
		case one == nil:
			one = err
		case !same(one, err):
			return nil
		}
	}
	if one == nil || IsPermanent(one) {
		return nil
	}
	return one
}

// same reports whether a and b are one error. Errors of a type without equality,
// such as a slice, are never the same.
func same(a, b error) bool {
	return reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b //nolint:errorlint // identity, not a chain
}
