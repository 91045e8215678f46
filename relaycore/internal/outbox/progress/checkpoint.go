package progress

import (
	"encoding/json"
	"fmt"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/backfill"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// version is the version of checkpoints that this relay writes and reads.
const version = 1

// Checkpoint is the stored form of a source's progress. It is written up to 20 times a
// second, so the names of its members are short. Members are added only; a relay that
// does not know one ignores it.
type Checkpoint struct {
	V    int          `json:"v"`
	Mode string       `json:"mode"` // name of the strategy
	Of   table.Origin `json:"of"`
	scan.State

	// Backfill is how far the rows of the captured table are settled; nil = it is complete,
	// or there was none.
	Backfill *backfill.State `json:"backfill,omitempty"`
	// Served is the id of the last requested snapshot that is settled, cancelled or refused.
	Served int64 `json:"served,omitempty"`

	// Part is a row, and the number of its first messages that are settled.
	Part *[2]int64 `json:"part,omitempty"`
	// Done has more runs of settled messages: row, first index, index after the last.
	Done [][3]int64 `json:"done,omitempty"`

	// Safe is the id up to which everything is settled and no row appears in future.
	Safe int64 `json:"safe"`
	// Audit counts settled rows: see [audit].
	Audit []int64 `json:"audit,omitempty"`
	// Expired counts ids that were gone before they could be delivered.
	Expired int64 `json:"expired,omitempty"`
}

// Parse returns the checkpoint that c has, nil if it has none.
func Parse(c relay.Checkpoint) (*Checkpoint, error) {
	if len(c.State) == 0 || string(c.State) == "null" {
		return nil, nil
	}
	var cp Checkpoint
	if err := json.Unmarshal(c.State, &cp); err != nil {
		return nil, relay.Fatal(fmt.Errorf("checkpoint %.100q is not one of ours: %w", c.State, err))
	}
	if cp.V != version || cp.Mode != scan.Window.Name() && cp.Mode != scan.Fence.Name() {
		return nil, relay.Fatal(fmt.Errorf("checkpoint has version %d and mode %q: a newer relay wrote it; run that version", cp.V, cp.Mode))
	}
	return &cp, nil
}

// Position returns the scan's position.
func (c *Checkpoint) Position() (scan.Position, error) { return c.State.Position(c.Mode) }

// Settled returns the messages after the position that are settled.
func (c *Checkpoint) Settled() rows.Settled {
	settled := make(rows.Settled)
	if c.Part != nil {
		settled[c.Part[0]] = []rows.Run{{First: 0, End: c.Part[1]}}
	}
	for _, d := range c.Done {
		settled[d[0]] = append(settled[d[0]], rows.Run{First: d[1], End: d[2]})
	}
	return settled
}

// encode returns the checkpoint as the engine stores it.
func (c *Checkpoint) encode() relay.Checkpoint {
	state, err := json.Marshal(c)
	if err != nil {
		panic(err) // numbers and strings always can be encoded
	}
	return relay.Checkpoint{State: state, LastID: max(c.Safe, 0)}
}
