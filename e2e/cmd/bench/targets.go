package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"
)

// timed returns how many of n things do gets done in a second.
func timed(n int, do func() error) (float64, error) {
	began := time.Now()
	if err := do(); err != nil {
		return 0, err
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

func endpoint(env string) (string, error) {
	if v := os.Getenv(env); v != "" {
		return v, nil
	}
	return "", fmt.Errorf("%s is not set; make bench sets it", env)
}

// stdoutTarget has no client: alone, one connection reads and throws away what it reads.
func stdoutTarget(_ context.Context, b *bench, n int) (target, error) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return target{}, err
	}
	return target{
		keys:  map[string]any{"sink_type": "stdout", "stdout_path": os.DevNull},
		alone: func(ctx context.Context) error { return b.keyset(ctx, n, nil) },
		copy: b.copying(n, func(_ context.Context, events feed) error {
			var lines []byte
			for chunk, err := range events {
				if err != nil {
					return err
				}
				lines = lines[:0]
				for i := range chunk {
					lines = append(append(lines, chunk[i].body...), '\n')
				}
				if _, err := null.Write(lines); err != nil {
					return err
				}
			}
			return nil
		}),
		close: func() { _ = null.Close() },
	}, nil
}

func natsTarget(ctx context.Context, b *bench, n int) (target, error) {
	nc, js, name, err := natsStream(b)
	if err != nil {
		return target{}, err
	}
	t := target{
		keys:  map[string]any{"sink_type": "nats", "nats_url": nc.ConnectedUrl(), "nats_stream": name, "nats_subject": name + ".{op}"},
		close: func() { _ = js.DeleteStream(name); nc.Close() },
	}
	return b.sending(t, n, func(_ context.Context, events feed) error {
		for chunk, err := range events {
			if err != nil {
				return err
			}
			for i := range chunk {
				m := &chunk[i]
				msg := &nats.Msg{Subject: name + ".insert", Data: m.body, Header: nats.Header{
					nats.MsgIdHdr: {m.delivery()}, "Pgtrickle-Dedup-Key": {m.id}, "Pgtrickle-Op": {"insert"},
					"Pgtrickle-Outbox-Id": {m.outboxID}, "Content-Type": {"application/json"},
				}}
				if _, err := js.PublishMsgAsync(msg, nats.StallWait(20*time.Second)); err != nil {
					return err
				}
			}
		}
		<-js.PublishAsyncComplete()
		return nil
	}), nil
}

// natsWindow is the window at which PublishAsync is fastest here: of 256, 1024
// and 4096 the one in the middle.
const natsWindow = 1024

func natsStream(b *bench) (*nats.Conn, nats.JetStreamContext, string, error) {
	url, err := endpoint("RELAY_TEST_NATS_URL")
	if err != nil {
		return nil, nil, "", err
	}
	nc, err := nats.Connect(url)
	if err != nil {
		return nil, nil, "", err
	}
	js, err := nc.JetStream(nats.PublishAsyncMaxPending(natsWindow))
	if err != nil {
		return nil, nil, "", err
	}
	name := b.name()
	admin, err := jetstream.New(nc)
	if err != nil {
		return nil, nil, "", err
	}
	_, err = admin.CreateStream(context.Background(), jetstream.StreamConfig{
		Name: name, Subjects: []string{name + ".>"}, Storage: jetstream.FileStorage, AllowBatchPublish: true,
	})
	return nc, js, name, err
}

func redisTarget(ctx context.Context, b *bench, n int) (target, error) {
	url, err := endpoint("RELAY_TEST_REDIS_URL")
	if err != nil {
		return target{}, err
	}
	opts, err := redis.ParseURL(url)
	if err != nil {
		return target{}, err
	}
	client := redis.NewClient(opts)
	name := b.name()
	t := target{
		keys:  map[string]any{"sink_type": "redis", "redis_url": url, "redis_stream": name},
		close: func() { client.Del(context.WithoutCancel(ctx), name); _ = client.Close() },
	}
	return b.sending(t, n, func(ctx context.Context, events feed) error {
		for chunk, err := range events {
			if err != nil {
				return err
			}
			pipe := client.Pipeline()
			for i := range chunk {
				m := &chunk[i]
				pipe.XAdd(ctx, &redis.XAddArgs{Stream: name, Values: []any{
					"dedup_key", m.id, "subject", "pgtrickle.bench.insert", "op", "insert", "payload", m.body, "pgtrickle-pipeline-id", pipelineID,
					"pgtrickle-outbox-id", m.outboxID, "pgtrickle-key", m.outboxID, "content-type", "application/json",
				}})
			}
			if _, err := pipe.Exec(ctx); err != nil {
				return err
			}
		}
		return nil
	}), nil
}

func kafkaTarget(ctx context.Context, b *bench, n int) (target, error) {
	broker, err := endpoint("RELAY_TEST_KAFKA_BROKERS")
	if err != nil {
		return target{}, err
	}
	name := b.name()
	client := &kafka.Client{Addr: kafka.TCP(broker)}
	topics := kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: name, NumPartitions: 1, ReplicationFactor: 1}}}
	if _, err := client.CreateTopics(ctx, &topics); err != nil {
		return target{}, err
	}
	writer := kafkaWriter(broker, name)
	t := target{
		keys: map[string]any{"sink_type": "kafka", "kafka_brokers": broker, "kafka_topic": name},
		close: func() {
			_ = writer.Close()
			_, _ = client.DeleteTopics(context.WithoutCancel(ctx), &kafka.DeleteTopicsRequest{Topics: []string{name}})
		},
	}
	return b.sending(t, n, kafkaSend(writer)), nil
}

func kafkaWriter(broker, topic string) *kafka.Writer {
	return &kafka.Writer{
		Addr: kafka.TCP(broker), Topic: topic, RequiredAcks: kafka.RequireAll,
		BatchSize: 10_000, BatchBytes: 900_000, BatchTimeout: 5 * time.Millisecond,
	}
}

func kafkaSend(writer *kafka.Writer) func(context.Context, feed) error {
	return func(ctx context.Context, events feed) error {
		batch := make([]kafka.Message, 0, 10_000)
		for chunk, err := range events {
			if err != nil {
				return err
			}
			for i := range chunk {
				m := &chunk[i]
				id := []byte(m.outboxID)
				batch = append(batch, kafka.Message{
					Key: id, Value: m.body,
					Headers: []kafka.Header{
						{Key: "pgtrickle-dedup-key", Value: []byte(m.id)},
						{Key: "pgtrickle-pipeline-id", Value: []byte(pipelineID)},
						{Key: "pgtrickle-subject", Value: []byte("pgtrickle.bench.insert")},
						{Key: "pgtrickle-op", Value: []byte("insert")},
						{Key: "pgtrickle-outbox-id", Value: id},
						{Key: "content-type", Value: []byte("application/json")},
					},
				})
			}
			if len(batch)+chunkRows > cap(batch) {
				if err := writer.WriteMessages(ctx, batch...); err != nil {
					return err
				}
				batch = batch[:0]
			}
		}
		return writer.WriteMessages(ctx, batch...)
	}
}

func rabbitTarget(ctx context.Context, b *bench, n int) (target, error) {
	url, err := endpoint("RELAY_TEST_RABBITMQ_URL")
	if err != nil {
		return target{}, err
	}
	conn, err := amqp.Dial(url)
	if err != nil {
		return target{}, err
	}
	ch, err := conn.Channel()
	if err != nil {
		return target{}, err
	}
	name := b.name()
	if _, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
		return target{}, err
	}
	t := target{
		keys:  map[string]any{"sink_type": "rabbitmq", "rabbitmq_url": url, "rabbitmq_exchange": "", "rabbitmq_routing_key": name},
		close: func() { _, _ = ch.QueueDelete(name, false, false, false); _ = conn.Close() },
	}
	return b.sending(t, n, func(ctx context.Context, events feed) error {
		if err := ch.Confirm(false); err != nil {
			return err
		}
		window := make([]*amqp.DeferredConfirmation, 0, 1000)
		wait := func() error {
			for _, c := range window {
				if ok, err := c.WaitContext(ctx); err != nil || !ok {
					return errors.Join(err, fmt.Errorf("not confirmed: %v", !ok))
				}
			}
			window = window[:0]
			return nil
		}
		for chunk, err := range events {
			if err != nil {
				return err
			}
			for i := range chunk {
				m := &chunk[i]
				c, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", name, true, false, amqp.Publishing{
					MessageId: m.id, ContentType: "application/json", DeliveryMode: amqp.Persistent,
					Type: "insert", Timestamp: time.Now(), Body: m.body,
					Headers: amqp.Table{
						"Pgtrickle-Op": "insert", "Pgtrickle-Outbox-Id": m.outboxID,
						"Pgtrickle-Key": m.outboxID, "Pgtrickle-Subject": "pgtrickle.bench.insert",
					},
				})
				if err != nil {
					return err
				}
				if window = append(window, c); len(window) == cap(window) {
					if err := wait(); err != nil {
						return err
					}
				}
			}
		}
		return wait()
	}), nil
}

func webhookTarget(ctx context.Context, b *bench, n int) (target, error) {
	server, url, err := startEndpoint(ctx)
	if err != nil {
		return target{}, err
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	t := target{
		keys: map[string]any{
			"sink_type": "webhook", "webhook_url": url, "webhook_allow_private": true,
			"webhook_concurrency": 16, "key_template": "{row.id}",
		},
		close: func() { client.CloseIdleConnections(); _ = server.Process.Kill(); _ = server.Wait() },
	}
	return b.sending(t, n, func(ctx context.Context, events feed) error {
		return parallel(16, 1, events, func(events []message) error {
			m := &events[0]
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(m.body))
			if err != nil {
				return err
			}
			req.Header = http.Header{
				"Content-Type": {"application/json"}, "Idempotency-Key": {m.delivery()}, "Pgtrickle-Dedup-Key": {m.id},
				"Webhook-Id": {m.delivery()}, "Webhook-Timestamp": {strconv.FormatInt(time.Now().Unix(), 10)},
				"Pgtrickle-Op": {"insert"}, "Pgtrickle-Outbox-Id": {m.outboxID}, "Pgtrickle-Key": {m.outboxID},
				"Pgtrickle-Subject": {"pgtrickle.bench.insert"},
			}
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			return resp.Body.Close()
		})
	}), nil
}

// endpointCommand is a command of its own, so that the endpoint is a process like all
// other servers. Within one process, client and server would wake each other for next
// to nothing.
const endpointCommand = "webhook-endpoint"

// serveEndpoint answers each request with 200, for ever.
func serveEndpoint(context.Context, []string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s/\n", ln.Addr())
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})}
	return server.Serve(ln)
}

func startEndpoint(ctx context.Context) (server *exec.Cmd, url string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	server = exec.CommandContext(ctx, self, endpointCommand)
	out, err := server.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := server.Start(); err != nil {
		return nil, "", err
	}
	url, err = bufio.NewReader(out).ReadString('\n')
	return server, strings.TrimSpace(url), err
}

// parallel gives do the events, size at a time, from so many goroutines.
func parallel(goroutines, size int, events feed, do func([]message) error) error {
	var wg sync.WaitGroup
	parts, errs := make(chan []message, goroutines), make([]error, goroutines)
	for g := range goroutines {
		wg.Go(func() {
			for part := range parts {
				if errs[g] == nil {
					errs[g] = do(part)
				}
			}
		})
	}
	var failed error
	for chunk, err := range events {
		failed = cmp.Or(failed, err)
		for part := range slices.Chunk(chunk, size) {
			parts <- part
		}
	}
	close(parts)
	wg.Wait()
	return errors.Join(append(errs, failed)...)
}

func sqsTarget(ctx context.Context, b *bench, n int) (target, error) {
	url, err := endpoint("RELAY_TEST_SQS_ENDPOINT")
	if err != nil {
		return target{}, err
	}
	client := sqs.New(sqs.Options{
		Region: "elasticmq", BaseEndpoint: aws.String(url), Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""),
	})
	queue, err := client.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String(b.name())})
	if err != nil {
		return target{}, err
	}
	t := target{
		keys: map[string]any{
			"sink_type": "sqs", "sqs_queue_url": *queue.QueueUrl, "sqs_region": "elasticmq", "sqs_endpoint": url,
			"sqs_access_key_id": "x", "sqs_secret_access_key": "x", "sqs_concurrency": 4, "key_template": "{row.id}",
		},
		close: func() {
			_, _ = client.DeleteQueue(context.WithoutCancel(ctx), &sqs.DeleteQueueInput{QueueUrl: queue.QueueUrl})
		},
	}
	return b.sending(t, n, func(ctx context.Context, events feed) error {
		return parallel(4, 10, events, func(part []message) error {
			in := &sqs.SendMessageBatchInput{QueueUrl: queue.QueueUrl}
			for i := range part {
				m := &part[i]
				text := func(v string) types.MessageAttributeValue {
					return types.MessageAttributeValue{DataType: aws.String("String"), StringValue: &v}
				}
				in.Entries = append(in.Entries, types.SendMessageBatchRequestEntry{
					Id: aws.String(strconv.Itoa(i)), MessageBody: aws.String(string(m.body)),
					MessageAttributes: map[string]types.MessageAttributeValue{
						"dedup_key": text(m.id), "Pgtrickle-Subject": text("pgtrickle.bench.insert"), "Pgtrickle-Op": text("insert"),
						"Pgtrickle-Outbox-Id": text(m.outboxID), "Pgtrickle-Key": text(m.outboxID), "Content-Type": text("application/json"),
					},
				})
			}
			out, err := client.SendMessageBatch(ctx, in)
			if err == nil && len(out.Failed) > 0 {
				err = fmt.Errorf("%d entries failed", len(out.Failed))
			}
			return err
		})
	}), nil
}

func inboxTarget(ctx context.Context, b *bench, n int) (target, error) {
	name := b.name()
	if _, err := b.pool.Exec(ctx, `SELECT pgtrickle.create_inbox($1)`, name); err != nil {
		return target{}, err
	}
	t := target{
		keys: map[string]any{"sink_type": "pg-inbox", "pg_inbox_url": b.url, "pg_inbox_table": name},
		close: func() {
			_, _ = b.pool.Exec(context.WithoutCancel(ctx), `SELECT pgtrickle.drop_inbox($1, p_cascade => true)`, name)
		},
	}
	return b.sending(t, n, func(ctx context.Context, events feed) error { return b.unnest(ctx, name, events) }), nil
}

func natsInboxTarget(ctx context.Context, b *bench, n int) (target, error) {
	inbox, err := inboxTarget(ctx, b, n)
	if err != nil {
		return inbox, err
	}
	stream, err := natsTarget(ctx, b, n)
	if err != nil {
		return inbox, err
	}
	if err = b.load(ctx, n); err == nil {
		err = stream.alone(ctx)
	}
	if err != nil {
		return inbox, fmt.Errorf("fill the stream: %w", err)
	}
	url, name, table := stream.keys["nats_url"].(string), stream.keys["nats_stream"].(string), inbox.keys["pg_inbox_table"].(string)
	return target{
		keys: map[string]any{
			"source_type": "nats", "nats_url": url, "nats_stream": name, "nats_consumer": "bench", "inbox_table": table,
		},
		alone: inbox.alone,
		copy:  func(ctx context.Context) error { return b.natsToInbox(ctx, url, name, table, n) },
		close: func() { stream.close(); inbox.close() },
	}, nil
}

// natsToInbox pulls a stream's messages and inserts them. It acknowledges each chunk once
// that is in the inbox.
func (b *bench) natsToInbox(ctx context.Context, url, stream, table string, n int) error {
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	consumer, err := js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{AckPolicy: jetstream.AckAllPolicy, MaxAckPending: -1})
	if err != nil {
		return err
	}
	pulled, err := consumer.Messages(jetstream.PullMaxMessages(2000))
	if err != nil {
		return err
	}
	defer pulled.Stop()
	acks := make(chan jetstream.Msg, 8) // the last message of each chunk on its way
	return b.unnest(ctx, table, overlapped(func(yield func([]message, error) bool) {
		for got := 0; got < n; {
			chunk := make([]message, 0, chunkRows)
			for ; len(chunk) < chunkRows && got < n; got++ {
				msg, err := pulled.Next()
				if err != nil {
					yield(nil, err)
					return
				}
				chunk = append(chunk, message{id: msg.Headers().Get("Pgtrickle-Dedup-Key"), row: rowOf(msg.Data())})
				if len(chunk) == chunkRows || got == n-1 {
					acks <- msg
				}
			}
			if !yield(chunk, nil) {
				return
			}
		}
	}), func() error { return (<-acks).Ack() })
}

// unnest inserts into an inbox as its own client would, and calls each of done behind each
// chunk.
func (b *bench) unnest(ctx context.Context, table string, events feed, done ...func() error) error {
	sql := `INSERT INTO ` + pgx.Identifier{"pgtrickle", table}.Sanitize() + ` (event_id, event_type, source, aggregate_id, payload)
		SELECT id, 'pgtrickle.bench.insert', 'bench', '', body FROM unnest($1::text[], $2::jsonb[]) AS m(id, body) ON CONFLICT DO NOTHING`
	conn, err := b.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	for chunk, err := range events {
		if err != nil {
			return err
		}
		ids, rows := make([]string, len(chunk)), make([]string, len(chunk))
		for i := range chunk {
			ids[i], rows[i] = chunk[i].id, string(chunk[i].row)
		}
		if _, err := conn.Exec(ctx, sql, ids, rows); err != nil {
			return err
		}
		for _, f := range done {
			if err := f(); err != nil {
				return err
			}
		}
	}
	return nil
}

// rowOf cuts the row out of an envelope: what an inbox holds.
func rowOf(body []byte) []byte {
	from := bytes.Index(body, []byte(`"payload":`)) + len(`"payload":`)
	return body[from:bytes.LastIndex(body, []byte(`,"op":`))]
}
