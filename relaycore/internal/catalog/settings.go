package catalog

import (
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/codec"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/reshape"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Settings are the keys that pipelines of every backend have. Only those of the
// pipeline's direction are set.
type Settings struct {
	Common
	Forward
	Reverse
}

// Common are the keys of both directions.
type Common struct {
	BatchSize        int                   `json:"batch_size" relay:"min=1" doc:"Messages one receive may return."`
	PollInterval     relaycfg.Duration     `json:"poll_interval_ms" relay:"alias=poll_interval" doc:"Upper bound of the pause between two polls of an idle source; twice as long for an outbox that has been quiet for ten seconds."`
	MaxInFlightBytes relaycfg.Size         `json:"max_in_flight_bytes" relay:"min=1" doc:"Bytes that may be between source and sink."`
	Format           string                `json:"format" relay:"enum=envelope|payload|cloudevents|debezium" doc:"Shape of the bodies: as they are written, or as they arrive."`
	Columns          reshape.ColumnsConfig `json:"columns" doc:"Which columns of a row travel, and which are masked: an object with include or exclude (lists), mask (an object of null, hash or last4 by column) and salt (a secret for hash)."`
	reshape.JQConfig
	OnError           string            `json:"on_error" relay:"enum=park|skip|halt" doc:"What a permanent failure of one message does: park its key behind it, skip it, or halt the pipeline."`
	MaxDeadLetters    int64             `json:"max_dead_letters" relay:"min=1" doc:"Dead letters and parked messages that may be stored. A pipeline that has as many fails until they are retried or discarded."`
	DeadLetterAge     relaycfg.Duration `json:"dead_letter_retention" doc:"Age at which dead letters are deleted. Each is logged and counted, and its key goes on. Default: never."`
	RateLimitMessages int64             `json:"rate_limit_messages" relay:"min=0" doc:"Messages a second at most; 0 is no limit."`
	RateLimitBytes    relaycfg.Size     `json:"rate_limit_bytes" doc:"Bytes a second at most; 0 is no limit."`
	RetentionHours    int64             `json:"retention_hours" relay:"min=0" doc:"Accepted as pg_trickle stores it. Retention belongs to the outbox or inbox, not to the pipeline."`
}

// Forward are the keys of a pipeline from an outbox to a broker.
type Forward struct {
	StreamTable     string                    `json:"stream_table" relay:"required,alias=outbox" doc:"Stream table (schema.table), or the outbox table's own name."`
	SubjectTemplate relay.Template            `json:"subject_template" doc:"Destination of a message; a backend's own destination key goes before it."`
	Headers         map[string]relay.Template `json:"headers" doc:"Headers added to every message; values are templates."`
	KeyField        string                    `json:"key_field" relay:"alias=kafka_key_field" doc:"Field of the row by whose value messages are ordered and partitioned; the row's primary key when not set and known."`
	KeyTemplate     relay.Template            `json:"key_template" doc:"Ordering key as a template, in place of key_field."`

	KeepInternalColumns bool `json:"keep_internal_columns" doc:"Leave __pgt_row_id and __pgt_count in the rows, the columns that pg_trickle adds to its stream tables."`

	outbox.Settings
	Group string `json:"group" doc:"Accepted as pg_trickle stores it. Checkpoints belong to --relay-group-id, so the value changes nothing."`
}

// Reverse are the keys of a pipeline from a broker to an inbox.
type Reverse struct {
	InboxTable        string        `json:"inbox_table" relay:"required,alias=inbox" doc:"Inbox table that messages are written to."`
	InboxSchema       string        `json:"inbox_schema" relay:"alias=schema" doc:"Schema of the inbox table."`
	EventIDFrom       string        `json:"event_id_from" doc:"Where the event id comes from: header:NAME, body:PATH, subject or key."`
	IDScope           string        `json:"id_scope" relay:"enum=far_end|global|pipeline" doc:"How far the ids of other producers are unique: within their stream, queue, topic or path, where the message's position counts if it has one (far_end), or in the world (global). Ids that a relay made are unique in the world. With pipeline no id is believed: all begin with the pipeline's name, for producers that could forge ids of a relay. set_relay_inbox sets far_end for a new pipeline."`
	EventTypeFrom     string        `json:"event_type_from" doc:"Where the event type comes from: header:NAME, body:PATH, subject or key."`
	AggregateIDFrom   string        `json:"aggregate_id_from" doc:"Where the aggregate id comes from: header:NAME, body:PATH, subject or key."`
	SourceFrom        string        `json:"source_from" doc:"Where the source column comes from: header:NAME, body:PATH, subject or key."`
	MaxMessageBytes   relaycfg.Size `json:"max_message_bytes" relay:"min=1" doc:"Largest body that goes to the inbox. A larger one becomes a dead letter of class too_large, which has it; a webhook answers 413. Default: what the relay's memory allows."`
	IDColumn          string        `json:"id_column" doc:"Column of the event's id; event_id unless the inbox's registration names another."`
	PayloadColumn     string        `json:"payload_column" doc:"Column of the event itself; payload by default."`
	EventTypeColumn   string        `json:"event_type_column" doc:"Column of the event's type; event_type unless the inbox's registration names another."`
	SourceColumn      string        `json:"source_column" doc:"Column of where the event came from; source by default."`
	AggregateIDColumn string        `json:"aggregate_id_column" doc:"Column of the key; aggregate_id by default."`
	ReceivedAtColumn  string        `json:"received_at_column" doc:"Column of the time of arrival; received_at unless the inbox's registration names another."`
	TraceIDColumn     string        `json:"trace_id_column" doc:"Column of the trace id; trace_id by default."`
	MaxRetries        int64         `json:"max_retries" relay:"min=0" doc:"Accepted as pg_trickle stores it. It governs the inbox's processing, not the relay."`
	Schedule          string        `json:"schedule" doc:"Accepted as pg_trickle stores it. It governs the inbox's stream tables, not the relay."`
	WithDeadLetter    bool          `json:"with_dead_letter" doc:"Accepted as pg_trickle stores it. It governs the inbox's views, not the relay."`
}

// The values of id_scope. New pipelines have far_end, older ones global.
const (
	IDScopeGlobal   = "global"
	IDScopePipeline = "pipeline"
)

type forwardSettings struct {
	Common
	Forward
}

type reverseSettings struct {
	Common
	Reverse
}

func defaultCommon() Common {
	return Common{
		BatchSize:        1000,
		PollInterval:     relaycfg.Duration(100 * time.Millisecond),
		MaxInFlightBytes: 16 << 20,
		Format:           "envelope",
		OnError:          "park",
		MaxDeadLetters:   100_000,
	}
}

func defaultForward() forwardSettings {
	subject, _ := relay.ParseTemplate("pgtrickle.{stream_table}.{op}")
	common := defaultCommon()
	common.BatchSize = 2048 // half of a publish; with 1000, the pause between two reads costs a tenth
	return forwardSettings{common, Forward{SubjectTemplate: subject, Settings: outbox.DefaultSettings()}}
}

func defaultReverse() reverseSettings {
	common := defaultCommon()
	common.MaxInFlightBytes = 8 << 20 // clients use more memory for a message than outboxes
	return reverseSettings{common, Reverse{InboxSchema: "pgtrickle", IDScope: IDScopeGlobal}}
}

// Keys lists the keys that every pipeline of the direction has.
func Keys(d relay.Direction) []relaycfg.Key {
	if d == relay.Forward {
		return relaycfg.Keys(defaultForward())
	}
	return relaycfg.Keys(defaultReverse())
}

// Validate checks keys against each other.
func (s *forwardSettings) Validate() error {
	if s.KeyField != "" && !s.KeyTemplate.IsZero() {
		return relaycfg.Errorf("key_template", `cannot be combined with "key_field"; keep one`)
	}
	if s.SnapshotMarker && s.SubjectTemplate.PerMessage() {
		return relaycfg.Errorf("snapshot_marker", `needs a subject_template without {row.…}, because a marker has no row of the table; use {op}`)
	}
	if s.SnapshotMarker && s.Format == codec.FormatDebezium {
		return relaycfg.Errorf("snapshot_marker", "format debezium has no form for a marker; set another format")
	}
	if s.Transform != "" && s.Format == codec.FormatDebezium {
		return relaycfg.Errorf("transform", "makes one row, but format debezium has one before and one after the change; set another format")
	}
	if err := s.ValidateStartup(); err != nil {
		return relaycfg.Errorf("startup", "%q %v", s.Startup, err)
	}
	return s.Common.validate()
}

// Validate checks the places that fields come from.
func (s *reverseSettings) Validate() error {
	for _, f := range []struct{ key, from string }{
		{"event_id_from", s.EventIDFrom},
		{"event_type_from", s.EventTypeFrom},
		{"aggregate_id_from", s.AggregateIDFrom},
		{"source_from", s.SourceFrom},
	} {
		kind, arg, _ := strings.Cut(f.from, ":")
		switch {
		case f.from == "", f.from == "subject", f.from == "key":
		case (kind == "header" || kind == "body") && arg != "":
		default:
			return relaycfg.Errorf(f.key, "unknown place %q; must be header:NAME, body:PATH, subject or key", f.from)
		}
	}
	return s.Common.validate()
}

func (c *Common) validate() error {
	if c.PollInterval <= 0 {
		return relaycfg.Errorf("poll_interval_ms", "must be greater than 0")
	}
	return c.JQConfig.Validate()
}
