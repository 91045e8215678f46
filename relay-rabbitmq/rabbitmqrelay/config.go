package rabbitmqrelay

import (
	"net/url"
	"regexp"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// connConfig is how either direction reaches the broker.
type connConfig struct {
	URL relaycfg.Secrets `json:"url" relay:"required" doc:"Nodes to connect to, tried in turn: amqp://USER:PASSWORD@HOST:5672/VHOST or amqps://; a list, or separated by commas."`
	relaynet.OptionalTLS
	Timeout   relaycfg.Duration `json:"timeout" relay:"min=1" doc:"How long to wait for a connection to be open."`
	Heartbeat relaycfg.Duration `json:"heartbeat" relay:"min=1000000000" doc:"A peer that is silent for twice this long is dead."`
}

type sinkConfig struct {
	connConfig
	Exchange        string            `json:"exchange" doc:"Exchange to publish to; empty is the default exchange, where the routing key is a queue's name."`
	RoutingKey      relay.Template    `json:"routing_key" relay:"alias=routing_key_template" doc:"Routing key; a template."`
	ExchangeType    string            `json:"exchange_type" doc:"Type of an exchange that is declared: topic, direct, fanout, headers, or a plugin's."`
	CreateIfMissing bool              `json:"create_if_missing" relay:"alias=declare_exchange,needs=exchange" doc:"Declare the exchange, durable, instead of checking that it exists."`
	Mandatory       bool              `json:"mandatory" doc:"Refuse a message that no queue would get; without it such a message is lost."`
	Persistent      bool              `json:"persistent" doc:"Have messages survive a restart of the broker."`
	StrictOrder     bool              `json:"strict_order" doc:"Publish a key's next message only when the one before is confirmed: needed if a queue's overflow is reject-publish, slow if keys are few."`
	MaxInFlight     int               `json:"max_in_flight" relay:"min=1" doc:"Messages published and not yet confirmed."`
	ConfirmTimeout  relaycfg.Duration `json:"confirm_timeout" relay:"min=1" doc:"A broker that confirms nothing for this long, and has not blocked publishers, is dead."`
}

type sourceConfig struct {
	connConfig
	Queue           string        `json:"queue" relay:"required" doc:"Queue to consume."`
	CreateIfMissing bool          `json:"create_if_missing" relay:"alias=declare_queue" doc:"Declare the queue, durable and of queue_type, instead of checking that it exists."`
	QueueType       string        `json:"queue_type" relay:"enum=quorum|classic|stream" doc:"Type of the queue."`
	BindExchange    string        `json:"bind_exchange" relay:"needs=create_if_missing" doc:"Exchange to which a declared queue is bound."`
	BindKeys        relaycfg.List `json:"bind_keys" doc:"Routing keys with which it is bound."`
	Prefetch        int           `json:"prefetch" relay:"alias=prefetch_count,min=1,max=65535" doc:"Messages the broker sends ahead of their acknowledgement, at most 65535."`
	OnReject        string        `json:"on_reject" relay:"enum=requeue|dead-letter|drop" doc:"What happens in the queue to a message that is refused: requeue gives it one more chance, dead-letter hands it to the queue's dead-letter exchange, drop removes it. In all cases relay_dead_letters has it first."`
	ID              string        `json:"id" relay:"enum=refuse|hash" doc:"A message without message-id: refuse makes it a dead letter, hash uses the SHA-256 of its body as its id. In a stream the offset is the id."`
	MaxDeliveries   int           `json:"max_deliveries" relay:"min=0" doc:"Refuse a message that a quorum queue has delivered more often than this; 0 never does."`
	ConsumerTag     string        `json:"consumer_tag" doc:"Consumer tag; default pgtrickle-relay and the pipeline's name."`
	OnRecreated     string        `json:"on_recreated" relay:"enum=stop|restart" doc:"When a stream was deleted and created again, or ends before the offset: stop with an error, or read it from its beginning, with ids of its own."`
	MarkQueue       bool          `json:"mark_queue" doc:"Notice that a queue was deleted and declared again. An internal exchange is bound to it, which the broker deletes with the queue."`
	Marker          string        `json:"marker" doc:"Name of that exchange; default QUEUE.life.GROUP.PIPELINE. It is declared."`
	StreamOffset    string        `json:"stream_offset" doc:"Where a stream is read from by a pipeline that has stored no offset: first, last, next, an offset, or an age such as 1h."`
	OffsetQueue     string        `json:"offset_queue" doc:"Queue that keeps the offset of a stream; default QUEUE.offset.GROUP.PIPELINE. It is declared."`
}

func connDefaults() connConfig {
	return connConfig{Timeout: relaycfg.Duration(30 * time.Second), Heartbeat: relaycfg.Duration(10 * time.Second)}
}

func sinkDefaults() sinkConfig {
	key, _ := relay.ParseTemplate("{stream_table}.{op}")
	return sinkConfig{
		connConfig:     connDefaults(),
		RoutingKey:     key,
		ExchangeType:   amqp.ExchangeTopic,
		Mandatory:      true,
		Persistent:     true,
		MaxInFlight:    1000,
		ConfirmTimeout: relaycfg.Duration(30 * time.Second),
	}
}

func sourceDefaults() sourceConfig {
	return sourceConfig{
		connConfig:   connDefaults(),
		QueueType:    amqp.QueueTypeQuorum,
		Prefetch:     1000,
		OnReject:     "requeue",
		ID:           "refuse",
		StreamOffset: "first",
		OnRecreated:  relay.OnRecreatedStop,
		MarkQueue:    true,
	}
}

// urls returns the URLs one by one, with TLS if it is configured.
func (c *connConfig) urls() []string {
	var urls []string
	for _, secret := range c.URL {
		for u := range strings.SplitSeq(secret.Reveal(), ",") {
			if u = strings.TrimSpace(u); u == "" {
				continue
			}
			if c.Configured() {
				if rest, plain := strings.CutPrefix(u, "amqp://"); plain {
					u = "amqps://" + rest
				}
			}
			urls = append(urls, u)
		}
	}
	return urls
}

// Validate is called by relaycfg.Decode.
func (c *connConfig) Validate() error {
	urls := c.urls()
	if len(urls) == 0 {
		return relaycfg.Errorf("url", "is empty")
	}
	for i, u := range urls {
		// The error must not quote the URL, which may hold a password.
		if _, err := url.Parse(u); err != nil {
			return relaycfg.Errorf("url", "number %d is malformed", i+1)
		}
		if _, err := amqp.ParseURI(u); err != nil {
			return relaycfg.Errorf("url", "number %d is malformed; wants amqp://USER:PASSWORD@HOST:5672/VHOST: %s",
				i+1, strings.ReplaceAll(err.Error(), u, "[redacted]"))
		}
	}
	return nil
}

var validOffset = regexp.MustCompile(`^(first|last|next|\d+|\d+[YMDhms])$`)

// Validate is called by relaycfg.Decode.
func (c *sourceConfig) Validate() error {
	if !validOffset.MatchString(c.StreamOffset) {
		return relaycfg.Errorf("stream_offset", "is %q; must be first, last, next, an offset such as 4711, or an age such as 1h",
			c.StreamOffset)
	}
	return c.connConfig.Validate()
}
