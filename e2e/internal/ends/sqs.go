package ends

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

type sqsEnd struct {
	endpoint, queue string
	client          *sqs.Client
	mu              sync.Mutex
	got             []Record // reading takes a message away
}

func newSQS(ctx context.Context, env Env) (End, error) {
	e := &sqsEnd{endpoint: env.Server.URL, client: sqs.New(sqs.Options{
		BaseEndpoint: aws.String(env.Server.URL), Region: "us-east-1",
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
	})}
	res, err := e.client.CreateQueue(ctx, &sqs.CreateQueueInput{
		QueueName:  aws.String(env.Name + ".fifo"),
		Attributes: map[string]string{"FifoQueue": "true", "VisibilityTimeout": "5"},
	})
	if err != nil {
		return nil, err
	}
	e.queue = aws.ToString(res.QueueUrl)
	return e, nil
}

func (e *sqsEnd) Sink() map[string]any {
	return map[string]any{
		"queue_url": e.queue, "endpoint": e.endpoint, "region": "us-east-1",
		"access_key_id": "test", "secret_access_key": "test",
	}
}

func (e *sqsEnd) Source() map[string]any {
	keys := e.Sink()
	keys["wait_time_seconds"], keys["visibility_timeout"] = 2, "5s"
	return keys
}

func (e *sqsEnd) Arrived(ctx context.Context) ([]Record, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		res, err := e.client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
			QueueUrl: &e.queue, MaxNumberOfMessages: 10, WaitTimeSeconds: 1,
			MessageSystemAttributeNames: []types.MessageSystemAttributeName{
				types.MessageSystemAttributeNameMessageDeduplicationId,
			},
			MessageAttributeNames: []string{"All"},
		})
		if err != nil {
			return slices.Clone(e.got), err
		}
		if len(res.Messages) == 0 {
			empty, err := e.empty(ctx)
			if empty || err != nil {
				return slices.Clone(e.got), err
			}
			continue
		}
		done := make([]types.DeleteMessageBatchRequestEntry, 0, 10)
		for i, m := range res.Messages {
			e.got = append(e.got, Record{
				ID:   m.Attributes[string(types.MessageSystemAttributeNameMessageDeduplicationId)],
				Key:  key(m), // the group id is a hash of keys that are no group ids
				Body: []byte(aws.ToString(m.Body)),
			})
			done = append(done, types.DeleteMessageBatchRequestEntry{Id: aws.String(fmt.Sprint(i)), ReceiptHandle: m.ReceiptHandle})
		}
		if _, err := e.client.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &e.queue, Entries: done}); err != nil {
			return nil, err
		}
	}
}

// empty reports whether nothing is in the queue, visible or not. The SDK
// loses an answer now and then and asks again. The messages of a lost answer stay
// hidden for their visibility timeout, with all that follow in their groups.
func (e *sqsEnd) empty(ctx context.Context) (bool, error) {
	names := []types.QueueAttributeName{
		types.QueueAttributeNameApproximateNumberOfMessages, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible,
	}
	res, err := e.client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &e.queue, AttributeNames: names})
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if res.Attributes[string(name)] != "0" {
			return false, nil
		}
	}
	return true, nil
}

func key(m types.Message) string {
	for name, value := range m.MessageAttributes {
		if strings.EqualFold(name, "Pgtrickle-Key") {
			return aws.ToString(value.StringValue)
		}
	}
	return ""
}

func (e *sqsEnd) Produce(ctx context.Context, records []Record) error {
	// A batch holds ten messages and 1 MiB; those of a large one go by themselves.
	for len(records) > 0 {
		n, size := 0, 0
		for n < min(10, len(records)) && (n == 0 || size+len(records[n].Body) < 900_000) {
			size += len(records[n].Body)
			n++
		}
		entries := make([]types.SendMessageBatchRequestEntry, n)
		for i, r := range records[:n] {
			entries[i] = types.SendMessageBatchRequestEntry{
				Id: aws.String(fmt.Sprint(i)), MessageBody: aws.String(string(r.Body)),
				MessageGroupId: aws.String(fmt.Sprintf("%x", r.Key)), MessageDeduplicationId: aws.String(r.ID),
			}
		}
		if err := retry(ctx, func(ctx context.Context) error {
			res, err := e.client.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: &e.queue, Entries: entries})
			if err == nil && len(res.Failed) > 0 {
				err = fmt.Errorf("send: %s", aws.ToString(res.Failed[0].Message))
			}
			return err
		}); err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

func (*sqsEnd) Close() {}
