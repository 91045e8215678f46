package outbox

import (
	"log/slog"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Settings are the keys of a forward pipeline that say how its outbox is read.
// The zero value is right for every outbox that the extension or we created.
type Settings struct {
	Strategy      string `json:"outbox_strategy" relay:"enum=auto|window|fence" doc:"How the outbox is read: by snapshot windows, which need a column of type xid8, or by the gap fence. auto takes windows where the column is there."`
	IDColumn      string `json:"id_column" doc:"Column that numbers the rows; default id, else the primary key's only column."`
	XidColumn     string `json:"xid_column" doc:"Column of type xid8 that defaults to pg_current_xact_id(); default: the one there is."`
	PayloadColumn string `json:"payload_column" doc:"Column that holds the event; default payload."`
	OpColumn      string `json:"op_column" doc:"Column that says insert, update or delete; default: none, every row is an insert. Tables of one's own only."`
	KeyColumn     string `json:"key_column" doc:"Column whose value is the ordering key; default: none. Tables of one's own only."`
	CreatedColumn string `json:"created_at_column" doc:"Column with the time at which the row was written; default created_at where there is one."`
	HeadersColumn string `json:"headers_column" doc:"Column of type jsonb with an object whose members become headers; default: none. Tables of one's own only."`
	SequenceCache string `json:"sequence_cache" relay:"enum=refuse|accept" doc:"Whether windows may read an outbox whose sequence hands out ids in bulk (CACHE above 1). Nothing is lost then, but rows of a key keep their order only if one session at a time writes the key; and progress, on which retention waits, is known only as sessions end."`
	OnRestore     string `json:"on_restore" relay:"enum=refuse|rebase" doc:"What to do when the database turns out to be another than the one the checkpoint was made in: refuse to start, or go on from the highest id known to be delivered, which can repeat rows."`
}

// DefaultSettings returns the settings with their defaults spelled out.
func DefaultSettings() Settings {
	return Settings{Strategy: "auto", SequenceCache: "refuse", OnRestore: "refuse"}
}

// Config is what Open needs to know besides the database.
type Config struct {
	// Outbox is the pipeline's stream_table: a stream table, "schema.table", or
	// the outbox table's own name.
	Outbox string
	// Settings are the pipeline's keys for its outbox.
	Settings Settings

	// Group and Pipeline name the checkpoint. They are used to find a starting
	// point in relay_consumer_offsets where Checkpoint is empty, to fetch the
	// checkpoint again after a failover, and by Verify.
	Group    string
	Pipeline string
	// Checkpoint is where to go on; the zero value starts at the beginning.
	Checkpoint relay.Checkpoint

	// PollInterval bounds how long an idle source waits between polls; 0 means
	// 100 ms.
	PollInterval time.Duration
	// ReadBytes bounds what one read of the table takes into memory, except that
	// a single larger row is taken whole; 0 means 4 MiB.
	ReadBytes int
	// Polled is told of each look at the table, and whether there were rows. It may
	// be nil.
	Polled func(found bool)
	// Wake ends a wait early. It may be nil.
	Wake <-chan struct{}
	// Logger may be nil.
	Logger *slog.Logger
}

const (
	defaultPoll  = 100 * time.Millisecond
	defaultBytes = 4 << 20
)

func (c *Config) defaults() {
	if c.PollInterval <= 0 {
		c.PollInterval = defaultPoll
	}
	if c.ReadBytes <= 0 {
		c.ReadBytes = defaultBytes
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Polled == nil {
		c.Polled = func(bool) {}
	}
	if c.Settings.Strategy == "" {
		c.Settings.Strategy = "auto"
	}
	if c.Settings.SequenceCache == "" {
		c.Settings.SequenceCache = "refuse"
	}
	if c.Settings.OnRestore == "" {
		c.Settings.OnRestore = "refuse"
	}
}
