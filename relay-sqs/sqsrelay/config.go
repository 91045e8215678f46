package sqsrelay

import (
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// connConfig is how either direction reaches the queue.
type connConfig struct {
	QueueURL        string            `json:"queue_url" relay:"required,secret" doc:"The queue's URL; a name that ends in .fifo makes it a FIFO queue."`
	Region          string            `json:"region" doc:"AWS region; that of queue_url when empty."`
	Endpoint        string            `json:"endpoint" relay:"secret" doc:"Server to talk to instead of AWS; that of queue_url when its host is not at amazonaws.com."`
	AccessKeyID     string            `json:"access_key_id" relay:"needs=secret_access_key" doc:"Static credentials; the SDK's chain (environment, files, container, instance) when empty."`
	SecretAccessKey relaycfg.Secret   `json:"secret_access_key" relay:"needs=access_key_id" doc:"The secret of access_key_id."`
	SessionToken    relaycfg.Secret   `json:"session_token" relay:"needs=access_key_id" doc:"The session token, when access_key_id is a temporary one."`
	RoleARN         string            `json:"role_arn" doc:"Role to assume with the credentials."`
	ConfirmTimeout  relaycfg.Duration `json:"confirm_timeout" relay:"alias=request_timeout,min=1000000" doc:"How long a request may take, the wait of a long poll not counted."`
	Concurrency     int               `json:"concurrency" relay:"min=1,max=100" doc:"Requests at a time."`
}

func (c *connConfig) validate() error {
	u, err := url.Parse(c.QueueURL)
	if err != nil || u.Host == "" || path.Base(u.Path) == "/" || path.Base(u.Path) == "." {
		return relaycfg.Errorf("queue_url", "is not the URL of a queue, such as https://sqs.eu-west-1.amazonaws.com/123456789012/orders")
	}
	host := u.Hostname()
	aws := strings.HasSuffix(host, ".amazonaws.com") || strings.HasSuffix(host, ".amazonaws.com.cn")
	if c.Endpoint == "" && !aws {
		c.Endpoint = u.Scheme + "://" + u.Host
	}
	if c.Region == "" {
		if parts := strings.Split(host, "."); aws && len(parts) > 3 && parts[0] == "sqs" {
			c.Region = parts[1]
		}
	}
	if c.Region == "" && c.Endpoint != "" {
		c.Region = "us-east-1" // part of the signature; the server ignores it
	}
	return nil
}

func (c *connConfig) queueName() string { return c.QueueURL[strings.LastIndexByte(c.QueueURL, '/')+1:] }

func (c *connConfig) fifo() bool { return strings.HasSuffix(c.queueName(), ".fifo") }

type sinkConfig struct {
	connConfig
	MessageGroupID relay.Template `json:"message_group_id" doc:"FIFO: the message group; the message's key when empty, and a group of its own for a message without key."`
	BatchSameGroup bool           `json:"batch_same_group" doc:"FIFO: let one request hold several messages of a group, which is faster with few keys; should SQS then take a later one and not an earlier, the two change places."`
}

func sinkDefaults() sinkConfig {
	return sinkConfig{connConfig: connConfig{Concurrency: 4, ConfirmTimeout: relaycfg.Duration(10 * time.Second)}}
}

// Validate checks the keys against each other.
func (c *sinkConfig) Validate() error {
	if err := c.validate(); err != nil {
		return err
	}
	if !c.fifo() && !c.MessageGroupID.IsZero() {
		return relaycfg.Errorf("message_group_id", "is for FIFO queues, whose names end in .fifo")
	}
	return nil
}

type sourceConfig struct {
	connConfig
	MaxMessages       int               `json:"max_messages" relay:"min=1,max=10" doc:"Messages to ask for in one request, at most 10."`
	WaitTime          relaycfg.Duration `json:"wait_time_seconds" relay:"max=20000000000" doc:"How long a request waits for a message while there is none, at most 20s, and a stop for such a request."`
	VisibilityTimeout relaycfg.Duration `json:"visibility_timeout" relay:"unit=s,min=1000000000,max=43200000000000" doc:"How long a received message stays hidden from others; extended for as long as the relay has it."`
}

func sourceDefaults() sourceConfig {
	return sourceConfig{
		connConfig:        connConfig{Concurrency: 2, ConfirmTimeout: relaycfg.Duration(10 * time.Second)},
		MaxMessages:       10,
		WaitTime:          relaycfg.Duration(2 * time.Second),
		VisibilityTimeout: relaycfg.Duration(30 * time.Second),
	}
}

// Validate checks the keys against each other.
func (c *sourceConfig) Validate() error {
	switch {
	case c.WaitTime.D()%time.Second != 0:
		return relaycfg.Errorf("wait_time_seconds", "is %s; must be whole seconds", c.WaitTime)
	case c.VisibilityTimeout.D()%time.Second != 0:
		return relaycfg.Errorf("visibility_timeout", "is %s; must be whole seconds", c.VisibilityTimeout)
	}
	return c.validate()
}
