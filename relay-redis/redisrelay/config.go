package redisrelay

import (
	"regexp"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// connConfig is the part of a configuration that sink and source share: how to reach
// the server.
type connConfig struct {
	URL      relaycfg.Secret `json:"url" relay:"required" doc:"Server: redis://, rediss:// (TLS), unix://, redis+cluster:// or redis+sentinel:// (also with rediss), with several hosts separated by commas for the last two."`
	Username string          `json:"username" doc:"ACL user; goes before the one in the URL."`
	Password relaycfg.Secret `json:"password" doc:"Password; goes before the one in the URL."`
	relaynet.OptionalTLS
	ConfirmTimeout relaycfg.Duration `json:"confirm_timeout" relay:"alias=timeout,min=1" doc:"How long to wait for a connection, and for an answer."`
}

type sinkConfig struct {
	connConfig
	Stream       relay.Template    `json:"stream" relay:"required,alias=stream_key" doc:"Stream to which a message is added; a template."`
	MaxLen       int64             `json:"maxlen" relay:"min=0,excludes=minid" doc:"Trim the stream to about this many entries (MAXLEN ~); 0 leaves it alone."`
	MinID        string            `json:"minid" doc:"Trim entries below this id, or older than this duration such as 72h (MINID ~)."`
	Resume       bool              `json:"resume" doc:"Read the streams' tails back after a crash or a lost reply, so that nothing is added twice; needs permission for XRANGE and XREVRANGE."`
	WaitReplicas int64             `json:"wait_replicas" relay:"min=0" doc:"Replicas that must have a batch before it counts as confirmed (WAIT)."`
	WaitTimeout  relaycfg.Duration `json:"wait_timeout" relay:"min=1" doc:"How long to wait for the replicas."`
}

type sourceConfig struct {
	connConfig
	Stream      string            `json:"stream" relay:"required,alias=stream_key" doc:"Stream to read."`
	Group       string            `json:"group" relay:"alias=group_name" doc:"Consumer group, created if it does not exist; default pgtrickle:GROUP:PIPELINE."`
	Consumer    string            `json:"consumer" relay:"required,alias=consumer_name" doc:"Consumer's name within the group; default pgtrickle-relay, so that the next owner of the pipeline inherits what the last one left."`
	StartID     string            `json:"start_id" doc:"Where a group that is created begins: 0 the oldest entry, $ the next one, or an entry id."`
	Block       relaycfg.Duration `json:"block" relay:"min=1000000" doc:"How long one read waits at the server for entries."`
	OnRecreated string            `json:"on_recreated" relay:"enum=stop|restart" doc:"When the group is gone, as after its stream was deleted, or the stream ends before the group's position: stop with an error, or read the stream from its beginning, with ids of its own."`
	ClaimIdle   relaycfg.Duration `json:"claim_idle" doc:"Take over entries that any consumer of the group has left unacknowledged for this long; 0 never does."`
}

func connDefaults() connConfig {
	return connConfig{ConfirmTimeout: relaycfg.Duration(10 * time.Second)}
}

func sinkDefaults() sinkConfig {
	stream, _ := relay.ParseTemplate("pgtrickle:{stream_table}")
	return sinkConfig{connConfig: connDefaults(), Stream: stream, Resume: true, WaitTimeout: relaycfg.Duration(5 * time.Second)}
}

func sourceDefaults() sourceConfig {
	return sourceConfig{
		connConfig:  connDefaults(),
		Consumer:    "pgtrickle-relay",
		StartID:     "0",
		OnRecreated: relay.OnRecreatedStop,
		Block:       relaycfg.Duration(5 * time.Second),
		ClaimIdle:   relaycfg.Duration(time.Minute),
	}
}

// Validate is called by relaycfg.Decode.
func (c *connConfig) Validate() error {
	_, err := parseURL(c.URL.Reveal())
	return err
}

var entryID = regexp.MustCompile(`^\d+(-\d+)?$`)

// Validate is called by relaycfg.Decode.
func (c *sinkConfig) Validate() error {
	if c.MinID != "" && !entryID.MatchString(c.MinID) && c.minAge() <= 0 {
		return relaycfg.Errorf("minid", `wants an entry id such as "1526569495631-0" or an age such as "72h", not %q`, c.MinID)
	}
	return c.connConfig.Validate()
}

// minAge returns the age of the entries to trim, or 0 if minid is an entry id.
func (c *sinkConfig) minAge() time.Duration {
	age, _ := time.ParseDuration(c.MinID) // an id has no unit
	return age
}

// Validate is called by relaycfg.Decode.
func (c *sourceConfig) Validate() error {
	if c.StartID != "$" && !entryID.MatchString(c.StartID) {
		return relaycfg.Errorf("start_id", "is %q; must be 0, $ or an entry id such as 1526569495631-0", c.StartID)
	}
	return c.connConfig.Validate()
}
