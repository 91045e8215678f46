package rows

import (
	"crypto/sha256"
	"encoding/base64"
	"math"
	"strconv"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// IDs makes the ids of an outbox's messages. Rows with ids up to LegacyTo have the
// form of the first releases, "TABLE:ROW:INDEX", which is unique in one database only.
// The others have "IDENTITY.TIME:ROW:INDEX". TIME is the row's created_at, in
// microseconds since 1970 to base 36. It keeps two rows apart if PostgreSQL hands out
// an id twice, after the promotion of a standby that lags or a restore. A user's own
// table has no TIME, because its column may change.
type IDs struct {
	Outbox   string // identity of the outbox; "" = every row is an old one
	Pipeline string // identity of the pipeline; "" = delivery ids are event ids
	LegacyTo int64
}

// Timed reports whether ids of t's messages have a TIME.
func Timed(t *table.Table) bool { return !t.Plain && t.Columns.Created != "" }

// ids is IDs for one table.
type ids struct {
	table    string // name, first part of the old form
	outbox   string
	pipeline string
	legacyTo int64
	timed    bool
}

func newIDs(t *table.Table, set IDs) ids {
	i := ids{table: t.Name, outbox: set.Outbox, pipeline: set.Pipeline, legacyTo: set.LegacyTo, timed: Timed(t)}
	if i.outbox == "" {
		i.legacyTo = math.MaxInt64
	}
	return i
}

// append appends the delivery id of the message at index, which ends in its event id,
// and returns where that begins.
func (i *ids) append(dst []byte, e *event, index int) (_ []byte, eventID int) {
	legacy := e.id <= i.legacyTo
	if !legacy && i.pipeline != "" {
		dst = append(append(dst, i.pipeline...), '.')
	}
	eventID = len(dst)
	switch {
	case e.given != nil && index == 0:
		return append(dst, e.given...), eventID
	case legacy:
		dst = append(dst, i.table...)
	default:
		dst = append(dst, i.outbox...)
		if i.timed {
			dst = strconv.AppendInt(append(dst, '.'), e.created.UnixMicro(), 36)
		}
	}
	dst = append(append(append(dst, ':'), e.idText...), ':')
	return strconv.AppendInt(dst, int64(index), 10), eventID
}

// appendExisting is append for a row that the captured table had before, by the run that
// reads it and its key: "OUTBOX.sRUN:HASH". A row has the same id each time that a run
// reads it.
func (i *ids) appendExisting(dst []byte, run string, key []byte) (_ []byte, eventID int) {
	name := i.table
	if i.outbox != "" {
		name = i.outbox
		if i.pipeline != "" {
			dst = append(append(dst, i.pipeline...), '.')
		}
	}
	eventID = len(dst)
	dst = append(append(append(append(dst, name...), ".s"...), run...), ':')
	hash := sha256.Sum256(key)
	return base64.RawURLEncoding.AppendEncode(dst, hash[:16]), eventID
}

// ParseExistingID returns the run that read the row of an id that appendExisting made for a
// table of that name and identity. ok is false for every other id.
func ParseExistingID(id, table, identity string) (run string, ok bool) {
	rest, ok := strings.CutPrefix(id, table+".s")
	if !ok && identity != "" {
		rest, ok = strings.CutPrefix(id, identity+".s")
	}
	run, _, colon := strings.Cut(rest, ":")
	return run, ok && colon
}

// ParseMessageID returns the row and the index of an id that a table of that name and
// identity gives. ok is false for every other id.
func ParseMessageID(id, table, identity string) (row, index int64, ok bool) {
	end := strings.LastIndexByte(id, ':')
	start := strings.LastIndexByte(id[:max(end, 0)], ':')
	if start < 0 {
		return 0, 0, false
	}
	outbox, _, _ := strings.Cut(id[:start], ".")
	row, err := strconv.ParseInt(id[start+1:end], 10, 64)
	index, err2 := strconv.ParseInt(id[end+1:], 10, 64)
	return row, index, (id[:start] == table || identity != "" && outbox == identity) && err == nil && err2 == nil
}

// delivery returns the delivery id of an event, given both as append has joined them.
func (i *ids) delivery(joined, eventID string) string {
	if len(joined) > relay.MaxDeliveryID && len(joined) > len(eventID) {
		return relay.DeliveryID(i.pipeline, eventID)
	}
	return joined
}
