package pginboxrelay

import (
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Backend returns the pg-inbox backend.
func Backend() relay.Backend {
	return relay.Backend{
		Name:       "pg-inbox",
		Aliases:    []string{"pg_inbox", "inbox"},
		NewSink:    newSink,
		SinkConfig: defaults(),
		SinkGuarantee: relay.Guarantee{
			Delivery: "effectively once",
			Dedup:    "unique key on the event id, for as long as a row is kept",
			Order:    "per key",
			Weakest:  "a row that is deleted and then delivered again is a new row",
		},
	}
}

type config struct {
	URL            relaycfg.Secret   `json:"url" relay:"required" doc:"Connection URL or keyword/value string of the database."`
	Table          string            `json:"table" relay:"required,alias=inbox_table|inbox" doc:"Inbox table, or schema.table."`
	Schema         string            `json:"schema" relay:"alias=inbox_schema" doc:"Schema of the table."`
	ID             string            `json:"id_column" doc:"Column of the event's id, event_id unless the table's registration says otherwise; it needs a unique key."`
	Payload        string            `json:"payload_column" doc:"Column of the row, payload by default: jsonb, json, text or bytea."`
	EventType      string            `json:"event_type_column" doc:"Column of the rendered subject, event_type unless the table's registration says otherwise."`
	Source         string            `json:"source_column" doc:"Column of the pipeline's name, source by default."`
	AggregateID    string            `json:"aggregate_id_column" doc:"Column of the key, aggregate_id by default."`
	ReceivedAt     string            `json:"received_at_column" doc:"Column that takes the database's clock, received_at unless the table's registration says otherwise."`
	TraceID        string            `json:"trace_id_column" doc:"Column of the trace id, trace_id by default."`
	MaxConnections int               `json:"max_connections" relay:"min=1" doc:"Connections of the pipeline's own pool."`
	Timeout        relaycfg.Duration `json:"timeout" relay:"min=1" doc:"A batch that is not confirmed by then is tried again."`
}

func defaults() config {
	return config{Schema: "pgtrickle", MaxConnections: 2, Timeout: relaycfg.Duration(30 * time.Second)}
}
