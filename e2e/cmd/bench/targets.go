package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
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

func stdoutTarget(_ context.Context, b *bench, n int) (target, error) {
	return target{
		keys:  map[string]any{"sink_type": "stdout", "stdout_path": "/dev/null"},
		raw:   func(ctx context.Context) error { return b.keyset(ctx, n) },
		close: func() {},
	}, nil
}

// keyset reads the outbox as fast as one connection can, and throws it away.
func (b *bench) keyset(ctx context.Context, n int) error {
	conn, err := b.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	pg := conn.Conn().PgConn()
	const sql = `SELECT id, refresh_id, created_at, is_claim_check, payload ` +
		`FROM pgtrickle.outbox_bench WHERE id > $1::bigint ORDER BY id LIMIT 1000`
	last := []byte("0")
	for got := 0; got < n; {
		r := pg.ExecParams(ctx, sql, [][]byte{last}, nil, nil, nil)
		for r.NextRow() {
			last = append(last[:0], r.Values()[0]...)
			got++
		}
		if _, err := r.Close(); err != nil {
			return err
		}
	}
	return nil
}

func natsTarget(ctx context.Context, b *bench, n int) (target, error) {
	nc, js, name, err := natsStream(b)
	if err != nil {
		return target{}, err
	}
	ids, bodies, err := b.messages(ctx, n)
	if err != nil {
		return target{}, err
	}
	return target{
		keys: map[string]any{"sink_type": "nats", "nats_url": nc.ConnectedUrl(), "nats_stream": name, "nats_subject": name + ".{op}"},
		raw: func(context.Context) error {
			for i := range ids {
				msg := &nats.Msg{Subject: name + ".insert", Data: bodies[i], Header: nats.Header{
					nats.MsgIdHdr: {ids[i]}, "Pgtrickle-Op": {"insert"}, "Pgtrickle-Outbox-Id": {outboxID(ids[i])}, "Content-Type": {"application/json"},
				}}
				if _, err := js.PublishMsgAsync(msg, nats.StallWait(20*time.Second)); err != nil {
					return err
				}
			}
			<-js.PublishAsyncComplete()
			return nil
		},
		close: func() { _ = js.DeleteStream(name); nc.Close() },
	}, nil
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
	ids, bodies, err := b.messages(ctx, n)
	name := b.name()
	return target{
		keys: map[string]any{"sink_type": "redis", "redis_url": url, "redis_stream": name},
		raw: func(ctx context.Context) error {
			for from := 0; from < n; from += 1000 {
				pipe := client.Pipeline()
				for i := from; i < min(n, from+1000); i++ {
					id := outboxID(ids[i])
					pipe.XAdd(ctx, &redis.XAddArgs{Stream: name, Values: []any{
						"dedup_key", ids[i], "subject", "pgtrickle.bench.insert", "op", "insert", "payload", bodies[i],
						"pgtrickle-outbox-id", id, "pgtrickle-key", id, "content-type", "application/json",
					}})
				}
				if _, err := pipe.Exec(ctx); err != nil {
					return err
				}
			}
			return nil
		},
		close: func() { client.Del(context.WithoutCancel(ctx), name); _ = client.Close() },
	}, err
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
	ids, bodies, err := b.messages(ctx, n)
	if err != nil {
		return target{}, err
	}
	writer := &kafka.Writer{
		Addr: kafka.TCP(broker), Topic: name, RequiredAcks: kafka.RequireAll,
		BatchSize: 10_000, BatchBytes: 900_000, BatchTimeout: 5 * time.Millisecond,
	}
	return target{
		keys: map[string]any{"sink_type": "kafka", "kafka_brokers": broker, "kafka_topic": name},
		raw: func(ctx context.Context) error {
			for from := 0; from < n; from += 10_000 {
				to := min(n, from+10_000)
				batch := make([]kafka.Message, 0, to-from)
				for i := from; i < to; i++ {
					id := []byte(outboxID(ids[i]))
					batch = append(batch, kafka.Message{
						Key: id, Value: bodies[i],
						Headers: []kafka.Header{
							{Key: "pgtrickle-dedup-key", Value: []byte(ids[i])},
							{Key: "pgtrickle-subject", Value: []byte("pgtrickle.bench.insert")},
							{Key: "pgtrickle-op", Value: []byte("insert")},
							{Key: "pgtrickle-outbox-id", Value: id},
							{Key: "content-type", Value: []byte("application/json")},
						},
					})
				}
				if err := writer.WriteMessages(ctx, batch...); err != nil {
					return err
				}
			}
			return nil
		},
		close: func() {
			_ = writer.Close()
			_, _ = client.DeleteTopics(context.WithoutCancel(ctx), &kafka.DeleteTopicsRequest{Topics: []string{name}})
		},
	}, nil
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
	ids, bodies, err := b.messages(ctx, n)
	if err != nil {
		return target{}, err
	}
	return target{
		keys: map[string]any{"sink_type": "rabbitmq", "rabbitmq_url": url, "rabbitmq_exchange": "", "rabbitmq_routing_key": name},
		raw: func(ctx context.Context) error {
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
			for i := range ids {
				id := outboxID(ids[i])
				c, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", name, true, false, amqp.Publishing{
					MessageId: ids[i], ContentType: "application/json", DeliveryMode: amqp.Persistent,
					Type: "insert", Timestamp: time.Now(), Body: bodies[i],
					Headers: amqp.Table{
						"Pgtrickle-Op": "insert", "Pgtrickle-Outbox-Id": id,
						"Pgtrickle-Key": id, "Pgtrickle-Subject": "pgtrickle.bench.insert",
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
			return wait()
		},
		close: func() { _, _ = ch.QueueDelete(name, false, false, false); _ = conn.Close() },
	}, nil
}

// outboxID cuts the row's id out of the event's. It is the ordering key, too.
func outboxID(id string) string {
	_, id, _ = strings.Cut(id, ":")
	id, _, _ = strings.Cut(id, ":")
	return id
}

func webhookTarget(ctx context.Context, b *bench, n int) (target, error) {
	server, url, err := startEndpoint(ctx)
	if err != nil {
		return target{}, err
	}
	ids, bodies, err := b.messages(ctx, n)
	return target{
		keys: map[string]any{
			"sink_type": "webhook", "webhook_url": url, "webhook_allow_private": true,
			"webhook_concurrency": 16, "key_template": "{row.id}",
		},
		raw: func(ctx context.Context) error {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
			return parallel(16, n, func(i int) error {
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(bodies[i]))
				if err != nil {
					return err
				}
				id := outboxID(ids[i])
				req.Header = http.Header{
					"Content-Type": {"application/json"}, "Idempotency-Key": {ids[i]},
					"Webhook-Id": {ids[i]}, "Webhook-Timestamp": {strconv.FormatInt(time.Now().Unix(), 10)},
					"Pgtrickle-Op": {"insert"}, "Pgtrickle-Outbox-Id": {id}, "Pgtrickle-Key": {id}, "Pgtrickle-Subject": {"pgtrickle.bench.insert"},
				}
				resp, err := client.Do(req)
				if err != nil {
					return err
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				return resp.Body.Close()
			})
		},
		close: func() { _ = server.Process.Kill(); _ = server.Wait() },
	}, err
}

// endpointCommand is a command of its own, so that the endpoint is a process like all
// other servers. Within one process, client and server would wake each other for next
// to nothing.
const endpointCommand = "webhook-endpoint"

// serveEndpoint answers each request with 200, for ever.
func serveEndpoint() error {
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

// parallel calls do(0) to do(n-1) from so many goroutines.
func parallel(goroutines, n int, do func(i int) error) error {
	var wg sync.WaitGroup
	errs := make([]error, goroutines)
	for g := range goroutines {
		wg.Go(func() {
			for i := g; i < n && errs[g] == nil; i += goroutines {
				errs[g] = do(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
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
	ids, bodies, err := b.messages(ctx, n)
	return target{
		keys: map[string]any{
			"sink_type": "sqs", "sqs_queue_url": *queue.QueueUrl, "sqs_region": "elasticmq", "sqs_endpoint": url,
			"sqs_access_key_id": "x", "sqs_secret_access_key": "x", "sqs_concurrency": 4, "key_template": "{row.id}",
		},
		raw: func(ctx context.Context) error {
			return parallel(4, (n+9)/10, func(batch int) error {
				in := &sqs.SendMessageBatchInput{QueueUrl: queue.QueueUrl}
				for i := batch * 10; i < min(n, batch*10+10); i++ {
					text := func(v string) types.MessageAttributeValue {
						return types.MessageAttributeValue{DataType: aws.String("String"), StringValue: &v}
					}
					id := outboxID(ids[i])
					in.Entries = append(in.Entries, types.SendMessageBatchRequestEntry{
						Id: aws.String(fmt.Sprint(i)), MessageBody: aws.String(string(bodies[i])),
						MessageAttributes: map[string]types.MessageAttributeValue{
							"dedup_key": text(ids[i]), "Pgtrickle-Subject": text("pgtrickle.bench.insert"), "Pgtrickle-Op": text("insert"),
							"Pgtrickle-Outbox-Id": text(id), "Pgtrickle-Key": text(id), "Content-Type": text("application/json"),
						},
					})
				}
				out, err := client.SendMessageBatch(ctx, in)
				if err == nil && len(out.Failed) > 0 {
					err = fmt.Errorf("%d entries failed", len(out.Failed))
				}
				return err
			})
		},
		close: func() {
			_, _ = client.DeleteQueue(context.WithoutCancel(ctx), &sqs.DeleteQueueInput{QueueUrl: queue.QueueUrl})
		},
	}, err
}

func inboxTarget(ctx context.Context, b *bench, n int) (target, error) {
	name := b.name()
	if _, err := b.pool.Exec(ctx, `SELECT pgtrickle.create_inbox($1)`, name); err != nil {
		return target{}, err
	}
	ids, bodies, err := b.messages(ctx, n)
	return target{
		keys: map[string]any{"sink_type": "pg-inbox", "pg_inbox_url": b.url, "pg_inbox_table": name},
		raw:  func(ctx context.Context) error { return b.unnest(ctx, name, ids, bodies) },
		close: func() {
			_, _ = b.pool.Exec(context.WithoutCancel(ctx), `SELECT pgtrickle.drop_inbox($1, p_cascade => true)`, name)
		},
	}, err
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
	if err := stream.raw(ctx); err != nil {
		return inbox, fmt.Errorf("fill the stream: %w", err)
	}
	return target{
		keys: map[string]any{
			"source_type": "nats", "nats_url": stream.keys["nats_url"], "nats_stream": stream.keys["nats_stream"], "nats_consumer": "bench",
			"inbox_table": inbox.keys["pg_inbox_table"],
		},
		raw:   inbox.raw,
		close: func() { stream.close(); inbox.close() },
	}, nil
}

// unnest inserts into an inbox as its own client would.
func (b *bench) unnest(ctx context.Context, table string, ids []string, bodies [][]byte) error {
	sql := `INSERT INTO ` + pgx.Identifier{"pgtrickle", table}.Sanitize() + ` (event_id, event_type, source, aggregate_id, payload)
		SELECT id, 'pgtrickle.bench.insert', 'bench', '', body FROM unnest($1::text[], $2::jsonb[]) AS m(id, body) ON CONFLICT DO NOTHING`
	conn, err := b.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	for from := 0; from < len(ids); from += 1000 {
		to := min(len(ids), from+1000)
		if _, err := conn.Exec(ctx, sql, ids[from:to], rowsOf(bodies[from:to])); err != nil {
			return err
		}
	}
	return nil
}

// rowsOf cuts the rows out of envelopes: what an inbox holds.
func rowsOf(bodies [][]byte) []string {
	rows := make([]string, len(bodies))
	for i, body := range bodies {
		from := bytes.Index(body, []byte(`"payload":`)) + len(`"payload":`)
		to := bytes.LastIndex(body, []byte(`,"op":`))
		rows[i] = string(body[from:to])
	}
	return rows
}
