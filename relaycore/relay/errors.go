package relay

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// ErrHeldBack is the error of a message that was not sent because an earlier
// message of its key failed.
var ErrHeldBack = errors.New("held back behind an earlier message of its key")

// ErrClosed is the error of a sink or source that is used after Close.
var ErrClosed = errors.New("closed")

// ErrFiltered is the Err of a message that its pipeline's filter drops. The engine settles
// the message and does not publish it.
var ErrFiltered = errors.New("dropped by the pipeline's filter")

// ErrUnknownBackend is wrapped by [Registry.Lookup].
var ErrUnknownBackend = errors.New("unknown backend")

// BatchError has the messages of a batch that are not confirmed. All others are
// durable at the destination. [Outcome] makes one.
type BatchError struct {
	Failed map[int]error // by index in the batch
}

func (e *BatchError) Error() string {
	first := slices.Min(slices.Collect(maps.Keys(e.Failed)))
	if len(e.Failed) == 1 {
		return e.Failed[first].Error()
	}
	return fmt.Sprintf("%d messages not confirmed, the first: %v", len(e.Failed), e.Failed[first])
}

// Unwrap returns the messages' errors in the order of the batch.
func (e *BatchError) Unwrap() []error {
	errs := make([]error, 0, len(e.Failed))
	for _, i := range slices.Sorted(maps.Keys(e.Failed)) {
		errs = append(errs, e.Failed[i])
	}
	return errs
}

// Permanent marks err as one that no retry will cure: this message can never be
// delivered as it is. The engine dead-letters it. As the error of a whole batch
// it makes the engine look for the culprit by bisection.
func Permanent(err error) error { return classify(err, classPermanent) }

// Fatal marks err as one that stops the pipeline until an operator changes
// something: a missing table, refused credentials, a topic that does not exist.
// No message is to blame, so none is dead-lettered.
func Fatal(err error) error { return classify(err, classFatal) }

// IsPermanent reports whether err was marked by [Permanent]. Errors that are
// marked by neither function are transient.
func IsPermanent(err error) bool { return class(err) == classPermanent }

// IsFatal reports whether err was marked by [Fatal].
func IsFatal(err error) bool { return class(err) == classFatal }

type errorClass int

const (
	classTransient errorClass = iota
	classPermanent
	classFatal
)

type classified struct {
	error
	class errorClass
}

func (c *classified) Unwrap() error { return c.error }

func classify(err error, cl errorClass) error {
	if err == nil {
		return nil
	}
	return &classified{err, cl}
}

// class returns the outermost class of err. A BatchError has none of its own.
func class(err error) errorClass {
	for err != nil {
		switch e := err.(type) { //nolint:errorlint // walks the chain itself, and must stop at a BatchError
		case *classified:
			return e.class
		case *BatchError:
			return classTransient
		case interface{ Unwrap() []error }:
			for _, sub := range e.Unwrap() {
				if cl := class(sub); cl != classTransient {
					return cl
				}
			}
			return classTransient
		}
		err = errors.Unwrap(err)
	}
	return classTransient
}

// RetryAfter adds to err, a transient one, the delay that the far end asked for, if any.
func RetryAfter(err error, d time.Duration) error {
	if err == nil || d <= 0 {
		return err
	}
	return &delayed{err, d}
}

// RetryDelay returns the delay for which the far end asked, and whether it did.
// If several messages have one, it is that of the first.
func RetryDelay(err error) (d time.Duration, ok bool) {
	if e, ok := errors.AsType[*delayed](err); ok {
		return e.delay, true
	}
	return 0, false
}

type delayed struct {
	error
	delay time.Duration
}

func (d *delayed) Unwrap() error { return d.error }

// Unknown marks err as one after which some or all of its messages may be durable at
// the destination, as when the answer was lost. If the sink is a [Resumer], the engine
// reads the destination back before it publishes again, as after a crash. So a sink
// keeps no record of what is in doubt.
//
// Unknown can be combined with the other classes of errors.
func Unknown(err error) error {
	if err == nil {
		return nil
	}
	return &unknown{err}
}

// IsUnknown reports whether err, or the error of any message of a [BatchError], was
// marked by [Unknown].
func IsUnknown(err error) bool {
	_, ok := errors.AsType[*unknown](err)
	return ok
}

type unknown struct{ error }

func (u *unknown) Unwrap() error { return u.error }
