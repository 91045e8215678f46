package catalog

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
)

// Channels that the catalog, the dead letters and the outboxes notify.
const (
	ChannelConfig      = "pgtrickle_relay_config"
	ChannelDeadLetters = "pgtrickle_relay_dlq"
	ChannelOutbox      = "pgtrickle_outbox_new"
)

// Events are the functions that [Watch] calls. It calls them all from one goroutine,
// and none may block.
type Events struct {
	// Changed asks for a new snapshot: a notification arrived, the poll is due, or
	// the connection is new and may have missed notifications.
	Changed func()
	// Retry reports that the pipeline was written, or should start at once if it waits
	// after an error; "" means any pipeline.
	Retry func(pipeline string)
	// DeadLetters reports that dead letters of the pipeline were released or
	// discarded; "" means any pipeline.
	DeadLetters func(pipeline string)
	// Outbox reports that the outbox table, named without its schema, has new rows;
	// "" means any table.
	Outbox func(table string)
	// Listening reports that the connection works, or why it does not.
	Listening func(err error)
}

// coalesce is how long Watch waits for further notifications of a burst.
const coalesce = 20 * time.Millisecond

// Watch listens on a connection of its own until ctx ends. Notifications are only
// hints: Changed is also called at every interval and after every new connection.
func Watch(ctx context.Context, connect func(context.Context) (*pgx.Conn, error), interval time.Duration, ev Events) {
	retry := backoff.Backoff{Min: minBackoff, Max: maxBackoff}
	for ctx.Err() == nil {
		started := time.Now()
		err := listen(ctx, connect, interval, ev)
		if ctx.Err() != nil {
			return
		}
		ev.Listening(err)
		if time.Since(started) > maxBackoff {
			retry.Reset()
		}
		// Polling continues without a listener.
		_ = backoff.Sleep(ctx, retry.Next()) // the loop looks at ctx
		ev.Changed()
	}
}

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

func listen(ctx context.Context, connect func(context.Context) (*pgx.Conn, error), interval time.Duration, ev Events) error {
	conn, err := connect(ctx)
	if err != nil {
		return fmt.Errorf("connect listener: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) // nothing depends on it
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
			// Only a ping detects that a silent connection is dead.
			if err := ping(ctx, conn); err != nil {
				return err
			}
			ev.Changed()
		case n.channel == ChannelOutbox:
			ev.Outbox(n.payload)
		case n.channel == ChannelDeadLetters:
			ev.DeadLetters(pipelineOf(n.payload))
		default:
			ev.Retry(pipelineOf(n.payload))
			if changedAt.IsZero() {
				changedAt = time.Now().Add(coalesce)
			}
		}
	}
}

// pipelineOf returns the pipeline that a notification names: the payload itself, or a
// member of the JSON object in it.
func pipelineOf(payload string) string {
	var object struct{ Pipeline, Name *string }
	if json.Unmarshal([]byte(payload), &object) == nil {
		if name := cmp.Or(object.Pipeline, object.Name); name != nil {
			return *name
		}
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

// wait returns the next notification, or nil and no error when the time has come.
func wait(ctx context.Context, conn *pgx.Conn, until time.Time) (*notification, error) {
	waitCtx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	n, err := conn.WaitForNotification(waitCtx)
	if err != nil {
		if waitCtx.Err() != nil && !conn.IsClosed() {
			return nil, nil
		}
		return nil, err
	}
	return &notification{n.Channel, n.Payload}, nil
}
