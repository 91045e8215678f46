package pginboxrelay

import (
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

type sinkConfig struct {
	URL            relaycfg.Secret   `json:"url" relay:"required" doc:"Connection URL or keyword/value string of the database."`
	Table          string            `json:"table" relay:"required,alias=inbox_table|inbox" doc:"Inbox table, or schema.table."`
	Schema         string            `json:"schema" relay:"alias=inbox_schema" doc:"Schema of the table."`
	ID             string            `json:"id_column" doc:"Column of the event's id, event_id unless the table's registration names another; it needs a unique key."`
	Payload        string            `json:"payload_column" doc:"Column of the row, payload by default: jsonb, json, text or bytea."`
	EventType      string            `json:"event_type_column" doc:"Column of the rendered subject, event_type unless the table's registration names another."`
	Source         string            `json:"source_column" doc:"Column of the pipeline's name, source by default."`
	AggregateID    string            `json:"aggregate_id_column" doc:"Column of the key, aggregate_id by default."`
	ReceivedAt     string            `json:"received_at_column" doc:"Column of the database's clock, received_at unless the table's registration names another."`
	TraceID        string            `json:"trace_id_column" doc:"Column of the trace id, trace_id by default."`
	MaxConnections int               `json:"max_connections" relay:"min=1" doc:"Connections of the pipeline's own pool."`
	ConfirmTimeout relaycfg.Duration `json:"confirm_timeout" relay:"min=1,alias=timeout" doc:"A batch that is not confirmed by then is tried again."`
}

func sinkDefaults() sinkConfig {
	return sinkConfig{Schema: "pgtrickle", MaxConnections: 2, ConfirmTimeout: relaycfg.Duration(30 * time.Second)}
}
