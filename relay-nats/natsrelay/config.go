package natsrelay

import (
	"regexp"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// connConfig is the part of a configuration that sink and source share: how to
// reach a server and log in.
type connConfig struct {
	URL         relaycfg.List   `json:"url" relay:"required,secret" doc:"Servers to connect to, for example nats://host:4222 or tls://host:4222; the first that answers is used."`
	Credentials string          `json:"credentials_file" relay:"file,excludes=nkey_file|user|token" doc:"Path of a credentials file: a user JWT with its nkey seed."`
	NKey        string          `json:"nkey_file" relay:"file,excludes=user|token" doc:"Path of a file that holds an nkey seed."`
	User        string          `json:"user" relay:"excludes=token" doc:"User name."`
	Password    relaycfg.Secret `json:"password" relay:"needs=user" doc:"Password of user."`
	Token       relaycfg.Secret `json:"token" doc:"Token, where the server asks for one instead of a user."`
	relaynet.TLS
	Domain string `json:"domain" doc:"JetStream domain, where the stream lives behind a leaf node."`
}

type sinkConfig struct {
	connConfig
	Stream         string            `json:"stream" doc:"Stream that must store the messages; without it, the one that takes the first message's subject."`
	Subject        relay.Template    `json:"subject" doc:"Subject of each message, in place of subject_template."`
	CreateStream   bool              `json:"create_if_missing" relay:"alias=create_stream,needs=stream" doc:"Create the stream when there is none."`
	StreamSubjects relaycfg.List     `json:"stream_subjects" doc:"Subjects of a stream that create_if_missing creates; by default subject with a wildcard for each variable, or pgtrickle.> without a subject."`
	Replicas       int               `json:"stream_replicas" relay:"min=1" doc:"Replicas of a stream that create_if_missing creates."`
	DedupWindow    relaycfg.Duration `json:"duplicate_window" doc:"Duplicate window of a stream that create_if_missing creates."`
	ConfirmTimeout relaycfg.Duration `json:"confirm_timeout" relay:"alias=ack_timeout,min=1" doc:"How long to wait for the server to confirm a message."`
	MaxInFlight    int               `json:"max_in_flight" relay:"min=1" doc:"Messages sent ahead of their confirmations."`
	StrictOrder    bool              `json:"strict_order" doc:"Publish a key's next message only once the one before is confirmed; without it only where the stream could put a key out of order. The same as pipelining per_key."`
	Pipelining     string            `json:"pipelining" relay:"enum=auto|full|per_key" doc:"When a message may be sent before the one ahead of it in its key is confirmed: always (full), never (per_key), or as the stream allows without risk to the order (auto)."`
}

func sinkDefaults() sinkConfig {
	return sinkConfig{
		Replicas:       1,
		DedupWindow:    relaycfg.Duration(2 * time.Minute),
		ConfirmTimeout: relaycfg.Duration(5 * time.Second),
		MaxInFlight:    4096,
		Pipelining:     "auto",
	}
}

// Validate checks keys that depend on each other. Strict order and pipelining
// per_key are one setting.
func (c *sinkConfig) Validate() error {
	if c.StrictOrder && c.Pipelining == "full" {
		return relaycfg.Errorf("strict_order", "contradicts pipelining full; keep one")
	}
	c.StrictOrder = c.StrictOrder || c.Pipelining == "per_key"
	return nil
}

// subjects returns the subjects of a stream to create.
func (c *sinkConfig) subjects() []string {
	switch {
	case len(c.StreamSubjects) > 0:
		return c.StreamSubjects
	case !c.Subject.IsZero():
		return []string{wildcards(c.Subject)}
	default:
		return []string{"pgtrickle.>"}
	}
}

type sourceConfig struct {
	connConfig
	Stream        string            `json:"stream" doc:"Stream to read; without it, the one that holds subject."`
	Consumer      string            `json:"consumer" relay:"alias=durable_name" doc:"Durable consumer that remembers how far the pipeline is; created when there is none; by default pgtrickle-relay- and the pipeline's name."`
	Subject       relaycfg.List     `json:"subject" doc:"Subjects to read, with wildcards; all of the stream's by default."`
	DeliverPolicy string            `json:"deliver_policy" relay:"enum=all|last|new|by_start_time" doc:"Where a consumer that has to be created begins."`
	StartTime     startTime         `json:"start_time" relay:"alias=opt_start_time" doc:"Where by_start_time begins, as RFC 3339."`
	AckWait       relaycfg.Duration `json:"ack_wait" relay:"min=1000000" doc:"How long the server waits for an acknowledgement before it delivers again; extended while the inbox is slow."`
	MaxDeliver    int               `json:"max_deliver" relay:"min=-1" doc:"Deliveries after which the server gives a message up; -1, the default, means never."`
	AckPolicy     string            `json:"ack_policy" relay:"enum=all|explicit" doc:"How a consumer that is created here is acknowledged: all lets one acknowledgement stand for everything before it, explicit takes one a message. An existing consumer keeps its own."`
	MaxAckPending int               `json:"max_ack_pending" relay:"min=1" doc:"Messages the server delivers ahead of their acknowledgements."`
	CreateStream  bool              `json:"create_if_missing" relay:"alias=create_stream,needs=stream|subject" doc:"Create the stream, with subject as its subjects, when there is none."`
	OnRecreated   string            `json:"on_recreated" relay:"enum=stop|restart" doc:"When the stream was deleted and created again, or ends before the position: stop with an error, or read it from its beginning, with ids of its own."`
	Replicas      int               `json:"stream_replicas" relay:"min=1" doc:"Replicas of a stream that create_if_missing creates."`
}

func sourceDefaults() sourceConfig {
	return sourceConfig{
		DeliverPolicy: "all",
		AckWait:       relaycfg.Duration(30 * time.Second),
		MaxDeliver:    -1,
		AckPolicy:     "all",
		MaxAckPending: 20_000,
		OnRecreated:   relay.OnRecreatedStop,
		Replicas:      1,
	}
}

// Validate checks keys that depend on each other.
func (c *sourceConfig) Validate() error {
	switch {
	case c.Stream == "" && len(c.Subject) == 0:
		return relaycfg.Errorf("stream", "is required, or subject, by which the stream is found")
	case c.MaxDeliver == 0:
		return relaycfg.Errorf("max_deliver", "is 0; must be positive, or -1 for no limit")
	case (c.DeliverPolicy == "by_start_time") != !c.StartTime.IsZero():
		return relaycfg.Errorf("start_time", "goes together with deliver_policy by_start_time")
	case notInConsumer.MatchString(c.Consumer):
		return relaycfg.Errorf("consumer", "is %q; a consumer's name has no space, dot, slash, * or >", c.Consumer)
	}
	return nil
}

// notInConsumer matches the characters that a consumer's name must not hold.
var notInConsumer = regexp.MustCompile(`[ .*>/\\\t\r\n]`)

// consumer returns the configuration of a consumer to create.
func (c *sourceConfig) consumer() jetstream.ConsumerConfig {
	cc := jetstream.ConsumerConfig{
		Durable: c.Consumer, AckPolicy: jetstream.AckAllPolicy, AckWait: c.AckWait.D(),
		MaxDeliver: c.MaxDeliver, MaxAckPending: c.MaxAckPending, FilterSubjects: c.Subject,
		DeliverPolicy: map[string]jetstream.DeliverPolicy{
			"all": jetstream.DeliverAllPolicy, "last": jetstream.DeliverLastPolicy,
			"new": jetstream.DeliverNewPolicy, "by_start_time": jetstream.DeliverByStartTimePolicy,
		}[c.DeliverPolicy],
	}
	if c.AckPolicy == "explicit" {
		cc.AckPolicy = jetstream.AckExplicitPolicy
	}
	if len(c.Subject) == 1 {
		cc.FilterSubject, cc.FilterSubjects = c.Subject[0], nil
	}
	if !c.StartTime.IsZero() {
		cc.OptStartTime = &c.StartTime.Time
	}
	return cc
}

// startTime is a time; an empty string leaves it unset.
type startTime struct{ time.Time }

// UnmarshalText reads RFC 3339.
func (s *startTime) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	return s.Time.UnmarshalText(b)
}
