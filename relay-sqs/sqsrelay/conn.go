package sqsrelay

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// queue is one queue and the client for it.
type queue struct {
	cfg    *connConfig
	client *sqs.Client
	limit  int       // of a message, in bytes
	asked  time.Time // when the limit was looked up last
}

// maxRequest bounds a message and a request, in bytes. It was 256 KiB until August
// 2025; older queues keep a lower limit of their own in MaximumMessageSize.
const maxRequest = 1 << 20

// Bounds of an answer, in bytes. Ten messages fit, each byte of which JSON may write as two.
const (
	maxAnswerHead = 64 << 10
	maxAnswer     = 32 << 20
)

// maxEntries bounds a batch request.
const maxEntries = 10

func openQueue(ctx context.Context, env relay.Env, cfg *connConfig) (*queue, error) {
	// The client must not retry: the engine does, and knows what may be sent again.
	dialer := relaynet.Dialer{Timeout: cfg.ConfirmTimeout.D(), Control: env.Control, Wrap: peer.HTTP}
	client := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConnsPerHost = 2*cfg.Concurrency + 2
		t.WriteBufferSize = 64 << 10         // a request of ten small messages goes out in one piece
		t.IdleConnTimeout = 30 * time.Second // nothing else closes them: the client copies its transport
		t.MaxResponseHeaderBytes = maxAnswerHead
		t.DialContext = dialer.DialContext
	})
	options := []func(*config.LoadOptions) error{
		config.WithHTTPClient(client),
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
	}
	if cfg.Region != "" {
		options = append(options, config.WithRegion(cfg.Region))
	}
	if cfg.AccessKeyID != "" {
		options = append(options, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(
			cfg.AccessKeyID, cfg.SecretAccessKey.Reveal(), cfg.SessionToken.Reveal())))
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("load the AWS configuration: %w", err)
	}
	var endpoint *string
	if cfg.Endpoint != "" {
		endpoint = &cfg.Endpoint
	}
	if cfg.RoleARN != "" {
		loaded.Credentials = aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(
			sts.NewFromConfig(loaded, func(o *sts.Options) {
				o.BaseEndpoint = endpoint
				o.HTTPClient = bodies{o.HTTPClient}
			}), cfg.RoleARN,
			func(o *stscreds.AssumeRoleOptions) { o.RoleSessionName = "pgtrickle-relay" }))
	}
	q := &queue{cfg: cfg}
	q.client = sqs.NewFromConfig(loaded, func(o *sqs.Options) {
		o.BaseEndpoint = endpoint
		o.HTTPClient = bodies{o.HTTPClient}
	})
	return q, q.check(ctx)
}

var peer = relaynet.Peer{Key: "sqs_endpoint", Name: "HTTP server", TLS: "https:// in sqs_endpoint"}

// bodies bounds the bodies of answers, which the SDK reads whole, and hides the WriteTo
// method of request bodies. The SDK closes a body when the answer begins, and WriteTo of a
// closed body returns io.EOF as an error. If net/http looks for more of the body then, it
// closes the connection in the middle of the answer. The received messages are lost.
type bodies struct{ sqs.HTTPClient }

func (c bodies) Do(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		r.Body = struct{ io.ReadCloser }{r.Body}
	}
	answer, err := c.HTTPClient.Do(r)
	if err == nil {
		answer.Body = http.MaxBytesReader(nil, answer.Body, maxAnswer)
	}
	return answer, err
}

// check reads the queue's limit, which shows that the queue exists.
func (q *queue) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, q.cfg.ConfirmTimeout.D())
	defer cancel()
	res, err := q.client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{
		QueueUrl:       &q.cfg.QueueURL,
		AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameMaximumMessageSize},
	})
	if err != nil {
		return q.classify(fmt.Errorf("look up queue %s: %w", q.cfg.QueueURL, err))
	}
	q.limit = maxRequest
	if n, err := strconv.Atoi(res.Attributes[string(types.QueueAttributeNameMaximumMessageSize)]); err == nil && n > 0 {
		q.limit = n
	}
	q.asked = time.Now()
	return nil
}

// askAgain returns the queue's limit, which may have been raised since the sink learnt
// it. It asks at most once a second. Without an answer the known limit counts.
func (q *queue) askAgain() int {
	if time.Since(q.asked) > time.Second {
		_ = q.check(context.Background())
	}
	return q.limit
}
