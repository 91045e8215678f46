package rabbitmqrelay

import (
	"context"
	"fmt"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// A queue has no identity that AMQP shows. A source that is disconnected or frozen while it
// is deleted and declared again finds a queue as before. So the source binds the queue to
// an exchange of its own, which the broker deletes with its last binding. The exchange
// vanishes with the queue, and does not come back with it. The cursor has that it was there.
//
// The source looks for the exchange when it has its consumer. If the exchange is there, the
// queue is the one that was marked, and the consumer is one of this queue. The broker
// cancels it when the queue is deleted later. If the source does not receive the
// cancellation, its next session finds no exchange.

// marked is the identity of a queue that has the exchange.
const marked = relay.Incarnation("marked")

// mark reports a queue that was deleted since it was marked, and marks it.
func mark(ctx context.Context, conn *conn, cfg *sourceConfig, known *progress) error {
	life, err := known.farEnds.Meet(ctx, "queue", cfg.Queue, "")
	if err != nil {
		return err
	}
	if life.ID == marked {
		err := withChannel(conn, func(channel *amqp.Channel) error { return channel.QueueBind(cfg.Queue, "", cfg.Marker, false, nil) })
		switch {
		case err == nil:
			return nil
		case code(err) == amqp.AccessRefused:
			known.unmarked(cfg, err)
			return nil
		case code(err) != amqp.NotFound || !strings.Contains(err.Error(), "no exchange"):
			return fmt.Errorf("look for exchange %q: %w", cfg.Marker, err)
		}
		err = known.farEnds.Remade(ctx, cfg.Queue, "queue was deleted", "queue", cfg.Queue, "missing_exchange", cfg.Marker,
			"effect", "the messages that were in it are lost; reading the queue that has its name now")
		if err != nil {
			return err
		}
	}
	err = withChannel(conn, func(channel *amqp.Channel) error {
		if err := channel.ExchangeDeclare(cfg.Marker, amqp.ExchangeDirect, true, true, true, false, nil); err != nil {
			return err
		}
		return channel.QueueBind(cfg.Queue, "", cfg.Marker, false, nil)
	})
	if code(err) == amqp.AccessRefused {
		known.unmarked(cfg, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("bind queue %q to exchange %q: %w", cfg.Queue, cfg.Marker, err)
	}
	_, err = known.farEnds.Meet(ctx, "queue", cfg.Queue, marked)
	return err
}

// unmarked warns once that the queue's deletion may go unnoticed.
func (p *progress) unmarked(cfg *sourceConfig, err error) {
	p.warn.Do(func() {
		p.log.Warn("deleted queue may go unnoticed", "queue", cfg.Queue, "err", err,
			"cure", fmt.Sprintf("let the user configure, write and read exchange %s, and write to the queue", cfg.Marker))
	})
}
