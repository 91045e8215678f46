package sqsrelay

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

const endpointEnv = "RELAY_TEST_SQS_ENDPOINT"

// maxBody is what the server takes, less room for attributes: AWS takes 1 MiB
// since August 2025, other servers may not have followed yet.
func maxBody(t testing.TB, endpoint string) int {
	t.Helper()
	const room = 2048
	url := newQueue(t, endpoint, "")
	_, err := rawClient(endpoint).SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: &url, MessageBody: aws.String(strings.Repeat("x", 1<<20))})
	if err != nil {
		t.Logf("the server does not take 1 MiB (%v); testing with 256 KiB", err)
		return 256<<10 - room
	}
	return 1<<20 - room
}

func testEnv() relay.Env {
	return relay.Env{Pipeline: "test", Identity: relaytest.Identity, Group: "default", Logger: slog.New(slog.DiscardHandler)}
}

func TestSink(t *testing.T) {
	endpoint := relaytest.Endpoint(t, endpointEnv)
	for name, tc := range map[string]struct {
		suffix string
		more   map[string]any
	}{
		"FIFO":          {".fifo", nil},
		"FIFOSameGroup": {".fifo", map[string]any{"batch_same_group": true}},
		"Standard":      {"", nil},
	} {
		t.Run(name, func(t *testing.T) {
			relaytest.TestSink(t, relaytest.SinkHarness{
				Copies: Backend().Copies,
				New: func(t testing.TB) relaytest.SinkCase {
					url := newQueue(t, endpoint, tc.suffix)
					return relaytest.SinkCase{
						Open: func(t testing.TB) relay.Sink { return openSink(t, url, tc.more) },
						Read: func(t testing.TB, n int) []relay.Message { return readRaw(t, endpoint, url, n) },
					}
				},
				Dedup: tc.suffix != "", Unordered: tc.suffix == "", UTF8Only: true, MaxBody: maxBody(t, endpoint),
				Refuse: func(_ testing.TB, m *relay.Message) { m.Body = []byte("a\x01b") },
			})
		})
	}
}

func TestSource(t *testing.T) {
	endpoint := relaytest.Endpoint(t, endpointEnv)
	for name, tc := range map[string]struct {
		suffix string
		more   map[string]any
	}{
		"FIFO":     {".fifo", map[string]any{"visibility_timeout": 5, "wait_time_seconds": 1}},
		"Standard": {"", map[string]any{"visibility_timeout": 5, "wait_time_seconds": 1, "concurrency": 3}},
	} {
		suffix := tc.suffix
		t.Run(name, func(t *testing.T) {
			relaytest.TestSource(t, relaytest.SourceHarness{
				NoEmpty: true,
				New: func(t testing.TB) relaytest.SourceCase {
					url := newQueue(t, endpoint, suffix)
					return relaytest.SourceCase{
						Open: func(t testing.TB, _ relay.Checkpoint) relay.Source {
							return openSource(t, url, tc.more)
						},
						Feed: func(t testing.TB, batch []relay.Message) { feedRaw(t, endpoint, url, batch) },
						FeedForeign: func(t testing.TB, body []byte) {
							in := &sqs.SendMessageInput{QueueUrl: &url, MessageBody: aws.String(string(body))}
							if suffix != "" {
								in.MessageGroupId, in.MessageDeduplicationId = aws.String("g"), aws.String(fmt.Sprint(time.Now().UnixNano()))
							}
							if _, err := rawClient(endpoint).SendMessage(t.Context(), in); err != nil {
								t.Fatalf("send: %v", err)
							}
						},
					}
				},
				Unordered: suffix == "", UTF8Only: true, MaxBody: maxBody(t, endpoint),
			})
		})
	}
}

func queueConfig(url string, more map[string]any) json.RawMessage {
	config := map[string]any{"queue_url": url, "access_key_id": "x", "secret_access_key": "x"}
	maps.Copy(config, more)
	raw, _ := json.Marshal(config)
	return raw
}

func openSink(t testing.TB, url string, more map[string]any) relay.Sink {
	t.Helper()
	s, err := Backend().Sink.New(t.Context(), testEnv(), queueConfig(url, more))
	if err != nil {
		t.Fatalf("open sink: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func openSource(t testing.TB, url string, more map[string]any) relay.Source {
	t.Helper()
	s, err := Backend().Source.New(t.Context(), testEnv(), queueConfig(url, more))
	if err != nil {
		t.Fatalf("open source: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func rawClient(endpoint string) *sqs.Client {
	return sqs.New(sqs.Options{
		Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""),
		HTTPClient: bodies{awshttp.NewBuildableClient()}, // an answer that is cut is ten messages that hide for a minute
	})
}

var queueNumber atomic.Int64

func newQueue(t testing.TB, endpoint, suffix string) string {
	t.Helper()
	name := fmt.Sprintf("relaytest-%d-%d%s", time.Now().UnixNano(), queueNumber.Add(1), suffix)
	attributes := map[string]string{"VisibilityTimeout": "5"}
	if suffix != "" {
		attributes["FifoQueue"] = "true"
	}
	client := rawClient(endpoint)
	res, err := client.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	if err != nil {
		t.Fatalf("create queue %s: %v", name, err)
	}
	t.Cleanup(func() {
		_, _ = client.DeleteQueue(context.Background(), &sqs.DeleteQueueInput{QueueUrl: res.QueueUrl})
	})
	return *res.QueueUrl
}

// feedRaw sends batch as the sink would. A FIFO queue gives nothing of a group while a
// message of it is out, and the suite leaves small batches out. So their messages get a
// group each.
func feedRaw(t testing.TB, endpoint, url string, batch []relay.Message) {
	t.Helper()
	client := rawClient(endpoint)
	for from := 0; from < len(batch); from += maxEntries {
		var in []types.SendMessageBatchRequestEntry
		size := 0
		for i := from; i < min(from+maxEntries, len(batch)); i++ {
			m := &batch[i]
			attributes := map[string]types.MessageAttributeValue{}
			for name, value := range map[string]string{
				"dedup_key": m.ID, "Pgtrickle-Op": m.Op, "Pgtrickle-Key": m.Key, "Pgtrickle-Subject": m.Subject, "Content-Type": m.ContentType,
			} {
				if value != "" {
					attributes[name] = types.MessageAttributeValue{DataType: aws.String("String"), StringValue: aws.String(value)}
				}
			}
			for _, h := range m.Headers {
				attributes[h.Name] = types.MessageAttributeValue{DataType: aws.String("String"), StringValue: aws.String(h.Value)}
			}
			e := types.SendMessageBatchRequestEntry{Id: aws.String(fmt.Sprint(i)), MessageBody: aws.String(string(m.Body)), MessageAttributes: attributes}
			if strings.HasSuffix(url, ".fifo") {
				e.MessageGroupId, e.MessageDeduplicationId = aws.String(m.Key), aws.String(m.ID)
				if len(batch) <= 100 {
					e.MessageGroupId = aws.String(m.ID)
				}
			}
			in = append(in, e)
			size += len(m.Body)
		}
		res, err := client.SendMessageBatch(t.Context(), &sqs.SendMessageBatchInput{QueueUrl: &url, Entries: in})
		if err != nil || len(res.Failed) > 0 {
			t.Fatalf("send %d bytes: %+v, %v", size, res, err)
		}
	}
}

// readRaw returns what is in the queue, and deletes it: nothing more of a group
// would come otherwise.
func readRaw(t testing.TB, endpoint, url string, n int) []relay.Message {
	t.Helper()
	client := rawClient(endpoint)
	ctx, cancel := context.WithTimeout(context.Background(), relaytest.Patience())
	defer cancel()
	var all []relay.Message
	for {
		res, err := client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
			// Without a wait SQS asks a part of its servers, and may return nothing though
			// there is something.
			QueueUrl: &url, MaxNumberOfMessages: 10, WaitTimeSeconds: 1, VisibilityTimeout: 60,
			MessageAttributeNames: []string{"All"}, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"},
		})
		if err != nil {
			t.Fatalf("receive after %d of %d messages: %v", len(all), n, err)
		}
		if len(res.Messages) == 0 {
			if len(all) >= n {
				return all
			}
			continue
		}
		var gone []types.DeleteMessageBatchRequestEntry
		for i, in := range res.Messages {
			gone = append(gone, types.DeleteMessageBatchRequestEntry{Id: aws.String(fmt.Sprint(i)), ReceiptHandle: in.ReceiptHandle})
			m := relay.Message{Body: []byte(*in.Body)}
			for name, a := range in.MessageAttributes {
				switch name {
				case "dedup_key":
					m.ID = *a.StringValue
				case "Pgtrickle-Op":
					m.Op = *a.StringValue
				case "Pgtrickle-Key":
					m.Key = *a.StringValue
				case "Pgtrickle-Before-Key":
					m.BeforeKey = *a.StringValue
				case "Pgtrickle-Subject":
					m.Subject = *a.StringValue
				default:
					m.Headers = append(m.Headers, relay.Header{Name: name, Value: *a.StringValue})
				}
			}
			all = append(all, m)
		}
		if _, err := client.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &url, Entries: gone}); err != nil {
			t.Fatalf("delete: %v", err)
		}
	}
}
