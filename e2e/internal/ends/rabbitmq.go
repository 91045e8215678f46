package ends

import (
	"context"
	"errors"
	"slices"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

type rabbitEnd struct {
	url, name string
	queueType string
	mu        sync.Mutex
	got       []Record // reading takes a message away
}

func newRabbitMQ(_ context.Context, env Env) (End, error) {
	e := &rabbitEnd{url: env.Server.URL, name: env.Name, queueType: amqp.QueueTypeQuorum}
	return e, e.declare()
}

func newRabbitMQStream(_ context.Context, env Env) (End, error) {
	e := &rabbitEnd{url: env.Server.URL, name: env.Name, queueType: amqp.QueueTypeStream}
	return e, e.declare()
}

func (e *rabbitEnd) declare() error {
	return e.with(func(ch *amqp.Channel) error {
		if err := ch.ExchangeDeclare(e.name, "topic", true, false, false, false, nil); err != nil {
			return err
		}
		if _, err := ch.QueueDeclare(e.name, true, false, false, false, amqp.Table{amqp.QueueTypeArg: e.queueType}); err != nil {
			return err
		}
		return ch.QueueBind(e.name, "#", e.name, false, nil)
	})
}

func (e *rabbitEnd) with(do func(*amqp.Channel) error) error {
	conn, err := amqp.Dial(e.url)
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	return do(ch)
}

func (e *rabbitEnd) Sink() map[string]any {
	return map[string]any{"url": e.url, "exchange": e.name}
}

func (e *rabbitEnd) Source() map[string]any {
	return map[string]any{"url": e.url, "queue": e.name, "queue_type": e.queueType}
}

func (e *rabbitEnd) Arrived(context.Context) ([]Record, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	err := e.with(func(ch *amqp.Channel) error {
		for {
			m, ok, err := ch.Get(e.name, false)
			if err != nil || !ok {
				return err
			}
			key, _ := m.Headers["pgtrickle-key"].(string)
			e.got = append(e.got, Record{ID: m.MessageId, Key: key, Body: m.Body})
			if err := m.Ack(false); err != nil {
				return err
			}
		}
	})
	return slices.Clone(e.got), err
}

func (e *rabbitEnd) Produce(ctx context.Context, records []Record) error {
	return retry(ctx, func(ctx context.Context) error {
		return e.with(func(ch *amqp.Channel) error {
			if err := ch.Confirm(false); err != nil {
				return err
			}
			confirms := make([]*amqp.DeferredConfirmation, len(records))
			for i, r := range records {
				var err error
				confirms[i], err = ch.PublishWithDeferredConfirmWithContext(ctx, "", e.name, true, false, amqp.Publishing{
					MessageId: r.ID, Body: r.Body, DeliveryMode: amqp.Persistent, ContentType: "application/json",
				})
				if err != nil {
					return err
				}
			}
			for _, c := range confirms {
				if ok, err := c.WaitContext(ctx); err != nil || !ok {
					return errors.Join(err, errors.New("not confirmed"))
				}
			}
			return nil
		})
	})
}

func (*rabbitEnd) Close() {}
