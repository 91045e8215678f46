package rabbitmqrelay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// A stream has no identity that AMQP 0.9.1 shows. So a hash of the message that was
// settled last is stored as the position's witness. Each session reads the message at
// that offset again. Another message there belongs to another stream. Before anything is
// settled, the witness is the first message that is handed out.

// Headers of the stored offset.
const (
	headerWitness = "pgtrickle-witness"
	headerNext    = "pgtrickle-next"
)

// witness returns a hash of what the publisher wrote into d.
func witness(d *amqp.Delivery) string {
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q %q %d %d ", d.RoutingKey, d.MessageId, d.Type, d.Timestamp.Unix(), len(d.Body))
	sum.Write(d.Body)
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

// meet checks that the stream is the one in which at is a position. The returned start
// is nil, or where the source begins again because the stream was created again.
func (o *offsetStore) meet(ctx context.Context, conn *conn, cfg *sourceConfig, at position) (start *position, err error) {
	ends := o.known.farEnds
	if o.life, err = ends.Meet(ctx, "stream", cfg.Queue, ""); err != nil {
		return nil, err
	}
	problem := ""
	if at.since.IsZero() && (at.offset >= 0 || at.next != "") {
		if problem, err = o.compare(ctx, conn, cfg, at); err != nil {
			return nil, err
		}
	}
	if problem == "" {
		return nil, ends.Began(ctx, cfg.Queue)
	}
	if o.life, err = ends.Lost(ctx, "stream", cfg.Queue, problem); err != nil {
		return nil, err
	}
	return &position{offset: -1}, nil
}

// compare returns why at is no position in the stream, or "".
func (o *offsetStore) compare(ctx context.Context, conn *conn, cfg *sourceConfig, at position) (problem string, err error) {
	wanted, known := at.offset, at.witness
	if at.next != "" {
		wanted, known = at.offset+1, at.next
	}
	there, _, err := probe(ctx, conn, cfg.Queue, wanted, wanted)
	if err != nil {
		return "", err
	}
	if there == nil { // perhaps the stream ends before
		return beyond(ctx, conn, cfg.Queue, wanted)
	}
	switch offset := streamOffset(there); {
	case offset > wanted:
		o.known.log.Warn("stream position cannot be checked", "queue", cfg.Queue, "offset", wanted, "first", offset,
			"because", "retention removed the message")
	case known != "" && known != witness(there):
		return fmt.Sprintf("another message is at offset %d: it was deleted and created again", wanted), nil
	case known == "": // an older relay stored none
		at.witness = witness(there)
		return "", o.store(ctx, at)
	}
	return "", nil
}

// beyond returns a problem if the stream ends before offset. A broker that is only slow
// is a transient error.
func beyond(ctx context.Context, conn *conn, queue string, offset int64) (problem string, err error) {
	there, end, err := probe(ctx, conn, queue, "last", offset)
	switch {
	case err != nil:
		return "", err
	case there == nil && end >= 0:
		return relay.EndsBefore(end, offset), nil
	case there == nil:
		q, err := inspect(conn, queue)
		if err != nil {
			return "", err
		}
		if q != nil && q.Messages == 0 {
			return fmt.Sprintf("it is empty, before the position %d: it lost messages or was created again", offset), nil
		}
	}
	return "", fmt.Errorf("read stream %q at offset %d: no message came within %s", queue, offset, startPatience)
}

// probe reads queue from an x-stream-offset until it has received a message at wanted or
// behind it, which it returns, or no more come. end is the last offset seen, or -1.
func probe(ctx context.Context, conn *conn, queue string, from any, wanted int64) (there *amqp.Delivery, end int64, err error) {
	channel, err := conn.Channel()
	if err != nil {
		return nil, -1, fmt.Errorf("open channel: %w", err)
	}
	defer func() { _ = channel.Close() }()
	if err := channel.Qos(100, 0, false); err != nil {
		return nil, -1, fmt.Errorf("set prefetch: %w", err)
	}
	deliveries, err := channel.Consume(queue, "", false, false, false, false, amqp.Table{headerStreamOffset: from})
	if err != nil {
		return nil, -1, fmt.Errorf("consume queue %q: %w", queue, err)
	}
	end = -1
	for {
		select {
		case <-ctx.Done():
			return nil, end, ctx.Err()
		case <-time.After(startPatience):
			return nil, end, nil
		case d, ok := <-deliveries:
			if !ok {
				return nil, end, errors.Join(amqp.ErrClosed, ctx.Err())
			}
			if end = streamOffset(&d); end >= wanted {
				return &d, end, nil
			}
			if err := d.Ack(false); err != nil {
				return nil, end, fmt.Errorf("acknowledge offset %d of queue %q: %w", end, queue, err)
			}
		}
	}
}
