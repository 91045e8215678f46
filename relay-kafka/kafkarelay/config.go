package kafkarelay

import (
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// connection holds the keys that sink and source share.
type connection struct {
	Brokers       relaycfg.List   `json:"brokers" relay:"required,alias=bootstrap_servers" doc:"Brokers to ask for the cluster's layout, each host:port."`
	ClientID      string          `json:"client_id" doc:"Name under which the brokers log this client and apply quotas to it."`
	SASLMechanism string          `json:"sasl_mechanism" relay:"enum=PLAIN|SCRAM-SHA-256|SCRAM-SHA-512,needs=sasl_username|sasl_password" doc:"How to log in; none when empty."`
	SASLUsername  string          `json:"sasl_username" relay:"needs=sasl_mechanism" doc:"User to log in as."`
	SASLPassword  relaycfg.Secret `json:"sasl_password" relay:"needs=sasl_mechanism" doc:"The user's password."`
	relaynet.OptionalTLS
}

func (c *connection) validate() error {
	for _, b := range c.Brokers {
		if strings.Contains(b, "://") || !strings.Contains(b, ":") {
			return relaycfg.Errorf("brokers", "%q is not host:port", b)
		}
	}
	return nil
}

func (c *connection) mechanism() (sasl.Mechanism, error) {
	switch c.SASLMechanism {
	case "PLAIN":
		return plain.Mechanism{Username: c.SASLUsername, Password: c.SASLPassword.Reveal()}, nil
	case "SCRAM-SHA-256":
		return scram.Mechanism(scram.SHA256, c.SASLUsername, c.SASLPassword.Reveal())
	case "SCRAM-SHA-512":
		return scram.Mechanism(scram.SHA512, c.SASLUsername, c.SASLPassword.Reveal())
	}
	return nil, nil
}

type sinkConfig struct {
	connection
	Topic             relay.Template    `json:"topic" relay:"alias=topic_template" doc:"Topic to write to; the rendered subject when empty."`
	Acks              string            `json:"acks" relay:"enum=all|1" doc:"Replicas that must have a message before it counts as delivered: all in sync, or 1, the leader alone, whose loss then loses messages."`
	Idempotence       bool              `json:"idempotence" doc:"Number the batches, so that brokers drop the second copy of one that is sent again after a lost connection; needs acks all."`
	Compression       string            `json:"compression" relay:"enum=none|gzip|snappy|lz4|zstd" doc:"Codec for batches."`
	CreateIfMissing   bool              `json:"create_if_missing" relay:"alias=create_topic" doc:"Create topics that do not exist, instead of stopping."`
	Partitions        int               `json:"partitions" relay:"min=0" doc:"Partitions of a topic that the sink creates; 0 is the broker's default."`
	ReplicationFactor int               `json:"replication_factor" relay:"min=0" doc:"Copies of each partition of a topic that the sink creates; 0 is the broker's default."`
	MaxMessageBytes   relaycfg.Size     `json:"max_message_bytes" doc:"Largest message to send, key and headers included, and max.message.bytes of topics that the sink creates; 0 is the topic's own limit."`
	Tombstones        string            `json:"tombstones" relay:"enum=auto|always|never" doc:"Whether a message without a value follows where a key has ended, by a delete or by an update of the key, so that compaction drops the key: auto where the topic is compacted. set_relay_outbox sets auto for a new pipeline."`
	ConfirmTimeout    relaycfg.Duration `json:"confirm_timeout" relay:"min=1000000,alias=request_timeout" doc:"How long a broker may take to confirm a batch before the attempt counts as failed."`
}

func sinkDefaults() sinkConfig {
	return sinkConfig{
		connection:     connection{ClientID: defaultClientID},
		Acks:           "all",
		Idempotence:    true,
		Compression:    "none",
		Tombstones:     tombstonesNever,
		ConfirmTimeout: relaycfg.Duration(30 * time.Second),
	}
}

var errTopicName = relaycfg.Errorf("topic", "is not a name that Kafka allows: up to 249 of a-z A-Z 0-9 . _ -")

// Validate is called by relaycfg.Decode.
func (c *sinkConfig) Validate() error {
	if c.Acks != "all" {
		c.Idempotence = false
	}
	if !c.Topic.IsZero() && c.Topic.Fixed() && !validTopic(c.Topic.String()) {
		return errTopicName
	}
	return c.validate()
}

type sourceConfig struct {
	connection
	Topic           relaycfg.List     `json:"topic" relay:"required,alias=topics" doc:"Topics to read."`
	GroupID         string            `json:"group_id" doc:"Consumer group that holds the position; pgtrickle-relay.GROUP.PIPELINE when empty."`
	AutoOffsetReset string            `json:"auto_offset_reset" relay:"enum=earliest|latest" doc:"Where to begin in a partition of which the group has no position."`
	SessionTimeout  relaycfg.Duration `json:"session_timeout" relay:"min=1000000" doc:"How long the group waits for a member that does not answer before it gives its partitions to others."`
	FetchMaxBytes   relaycfg.Size     `json:"fetch_max_bytes" relay:"min=1024,max=1073741824" doc:"Bytes that one request to a broker may return, and so the memory for what was read ahead."`
	FetchMaxWait    relaycfg.Duration `json:"fetch_max_wait" relay:"min=1000000" doc:"How long a broker holds a request while there is nothing to return; new messages are returned at once."`
	IsolationLevel  string            `json:"isolation_level" relay:"enum=read_committed|read_uncommitted" doc:"Whether messages of transactions that are open or aborted are passed over."`
	OnRecreated     string            `json:"on_recreated" relay:"enum=stop|restart" doc:"When a topic was deleted and created again, or ends before the group's position: stop with an error, or read it from its beginning, with ids of its own."`
	OnTombstone     string            `json:"on_tombstone" relay:"enum=delete|skip" doc:"What becomes of a message without a value: an event with op delete whose row is the key, or nothing."`
}

func sourceDefaults() sourceConfig {
	return sourceConfig{
		connection:      connection{ClientID: defaultClientID},
		AutoOffsetReset: "earliest",
		SessionTimeout:  relaycfg.Duration(10 * time.Second),
		FetchMaxBytes:   4 << 20,
		FetchMaxWait:    relaycfg.Duration(500 * time.Millisecond),
		IsolationLevel:  "read_committed",
		OnRecreated:     relay.OnRecreatedStop,
		OnTombstone:     "delete",
	}
}

// Validate is called by relaycfg.Decode.
func (c *sourceConfig) Validate() error {
	if slices.ContainsFunc(c.Topic, func(name string) bool { return !validTopic(name) }) {
		return errTopicName
	}
	return c.validate()
}

const defaultClientID = "pgtrickle-relay"
