package outbox

import (
	"cmp"
	"log/slog"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/stream"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Settings are the configuration keys of a pipeline that concern its outbox.
type Settings = table.Settings

// DefaultSettings returns the settings with every default filled in.
func DefaultSettings() Settings { return table.DefaultSettings() }

// Config is the input of [Open] beside the database.
type Config struct {
	// Outbox is the pipeline's stream_table: a stream table, "schema.table", or
	// the outbox table's own name.
	Outbox string
	// Settings are the pipeline's keys for its outbox.
	Settings Settings

	// Group and Pipeline name the stored checkpoint. [Open] looks them up in
	// relay_consumer_offsets if Checkpoint is empty. A source reads its checkpoint
	// again under these names after a failover, and [Verify] reads it.
	Group    string
	Pipeline string
	// Identity is the pipeline's; see [relay.Env].
	Identity string
	// Checkpoint is the position to start after; the zero value starts at the first
	// row.
	Checkpoint relay.Checkpoint

	// Epoch is that of the pipeline's lease, 0 if there is none. Snapshots are compared
	// under a lease only.
	Epoch int64
	// KeyFields are the fields of a row that make up its key and its destination. They
	// are kept of a deleted row if Settings.DiffState is keys.
	KeyFields []string
	// KeepInternal makes a change of the extension's own columns a change of the row.
	KeepInternal bool

	// PollInterval bounds the wait of an idle source between polls; 0 means 100 ms.
	PollInterval time.Duration
	// ReadBytes bounds the memory that the rows of one read take. A larger single row is
	// read by itself. 0 means 4 MiB.
	ReadBytes int
	// MaxRow bounds the payload of one row, in bytes. A larger one becomes a message with
	// a [budget.TooLargeError], unless it is sent while it is read. 0 means no bound.
	MaxRow int64
	// Patience is how long a statement that reads such a row waits for a slow sink; 0 means
	// 5 s.
	Patience time.Duration
	// Polled is called after each read of the table; found reports whether it
	// returned rows. It may be nil.
	Polled func(found bool)
	// Wake ends a wait early. It may be nil.
	Wake <-chan struct{}
	// Store returns a store that reads through q; nil means the relay's own tables.
	Store func(q pg.Querier) Store
	// Logger may be nil.
	Logger *slog.Logger

	streams bool // see [Source.Stream]
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
	if c.Polled == nil {
		c.Polled = func(bool) {}
	}
	if c.Store == nil {
		c.Store = stored(c.Group)
	}
	c.Patience = cmp.Or(c.Patience, stream.Patience)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	c.Settings = c.Settings.WithDefaults()
}
