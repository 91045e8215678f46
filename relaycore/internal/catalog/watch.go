package catalog

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// Channels that the catalog, the dead letters and the outboxes notify.
const (
	ChannelConfig      = "pgtrickle_relay_config"
	ChannelDeadLetters = "pgtrickle_relay_dlq"
	ChannelOutbox      = "pgtrickle_outbox_new"
)

// Events are what [Watch] calls, all from one goroutine; none may block.
type Events struct {
	// Changed asks for a new snapshot: a notification came, the poll is due, or
	// the connection is new and may have missed any number of notifications.
	Changed func()
	// DeadLetters says that letters of the pipeline were released or discarded;
	// "" stands for any pipeline.
	DeadLetters func(pipeline string)
	// Outbox says that the outbox table, named without its schema, has new rows;
	// "" stands for any table.
	Outbox func(table string)
	// Listening says that the connection stands, or why it does not.
	Listening func(err error)
}

// coalesce is how long further notifications of a burst are waited for.
const coalesce = 20 * time.Millisecond

// Watch listens on a connection of its own until ctx ends. A notification is
// only a hint: every interval, and whenever the connection is made anew,
// Changed is called without one.
func Watch(ctx context.Context, connect func(context.Context) (*pgx.Conn, error), interval time.Duration, ev Events) {
	backoff := minBackoff
	for ctx.Err() == nil {
		started := time.Now()
		err := listen(ctx, connect, interval, ev)
		if ctx.Err() != nil {
			return
		}
		ev.Listening(err)
		if time.Since(started) > maxBackoff {
			backoff = minBackoff
		}
		// The poll goes on while the listener is down.
		pause(ctx, backoff/2+rand.N(backoff))
		ev.Changed()
		backoff = min(2*backoff, maxBackoff)
	}
}

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func listen(ctx context.Context, connect func(context.Context) (*pgx.Conn, error), interval time.Duration, ev Events) error {
	conn, err := connect(ctx)
	if err != nil {
		return fmt.Errorf("connect listener: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) // nothing to lose on it
	for _, channel := range []string{ChannelConfig, ChannelDeadLetters, ChannelOutbox} {
		if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
			return fmt.Errorf("listen on %s: %w", channel, err)
		}
	}
	ev.Listening(nil)
	ev.Changed()
	ev.DeadLetters("")
	ev.Outbox("")

	pollAt := time.Now().Add(interval)
	changedAt := time.Time{} // when a coalesced change is due
	for {
		until := pollAt
		if !changedAt.IsZero() && changedAt.Before(until) {
			until = changedAt
		}
		n, err := wait(ctx, conn, until)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("wait for notifications: %w", err)
		case n == nil && !changedAt.IsZero():
			changedAt = time.Time{}
			ev.Changed()
		case n == nil:
			pollAt = time.Now().Add(interval)
			// The poll of a quiet connection is what notices that it is dead.
			if err := ping(ctx, conn); err != nil {
				return err
			}
			ev.Changed()
		case n.channel == ChannelOutbox:
			ev.Outbox(n.payload)
		case n.channel == ChannelDeadLetters:
			ev.DeadLetters(pipelineOf(n.payload))
		default:
			if changedAt.IsZero() {
				changedAt = time.Now().Add(coalesce)
			}
		}
	}
}

// pipelineOf reads the payload of a dead letter's notification, which is the
// pipeline's name, or a JSON object that holds it.
func pipelineOf(payload string) string {
	var object struct{ Pipeline string }
	if json.Unmarshal([]byte(payload), &object) == nil && object.Pipeline != "" {
		return object.Pipeline
	}
	return payload
}

func ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := conn.Ping(ctx); err != nil {
		return fmt.Errorf("ping listener: %w", err)
	}
	return nil
}

type notification struct{ channel, payload string }

// wait returns nil and no error when the time has come first.
func wait(ctx context.Context, conn *pgx.Conn, until time.Time) (*notification, error) {
	waitCtx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	n, err := conn.WaitForNotification(waitCtx)
	if err != nil {
		if waitCtx.Err() != nil && !conn.IsClosed() {
			return nil, nil //nolint:nilnil // documented
		}
		return nil, err
	}
	return &notification{n.Channel, n.Payload}, nil
}
