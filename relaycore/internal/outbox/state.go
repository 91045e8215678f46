package outbox

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// The two strategies, as settings and checkpoints spell them.
const (
	modeWindow = "window"
	modeFence  = "fence"
)

// beginning lies before every id.
const beginning = math.MinInt64

// origin is where a checkpoint was made. Whatever of it has changed says what
// has happened to the database or to the table since.
type origin struct {
	System   string `json:"system,omitempty"` // pg_control_system's identifier, where it may be read
	Timeline string `json:"timeline,omitempty"`
	Database uint32 `json:"db"`
	Table    uint32 `json:"table"`
	File     uint32 `json:"file,omitempty"`     // changes by TRUNCATE, and by VACUUM FULL
	Sequence uint32 `json:"sequence,omitempty"` // file of the sequence: changes by RESTART
}

// state is the durable form of a checkpoint. Field names are short because it
// is written thousands of times a minute.
type state struct {
	V    int    `json:"v"`
	Mode string `json:"mode"`
	Of   origin `json:"of"`

	// Snapshot windows: rows that Lo does not see are not delivered; while Hi is
	// set, a window is open between the two and its rows up to id At are.
	Lo string `json:"lo,omitempty"`
	Hi string `json:"hi,omitempty"`
	At *int64 `json:"at,omitempty"`

	// Gap fence: every row up to id Last that is not in Holes has been read. Holes
	// alternate between the length of what was read and of what is missing,
	// beginning at HoleFrom.
	Last     int64   `json:"last,omitempty"`
	HoleFrom int64   `json:"from,omitempty"`
	Holes    []int64 `json:"holes,omitempty"`
	// Idle has transactions that take no more ids: name, since when, highest id.
	Idle [][3]string `json:"idle,omitempty"`
	// Open is a read of which not every row is settled.
	Open *openRead `json:"open,omitempty"`

	// Part is a row and the number of its first messages that are settled; Done
	// has further runs of settled messages: row, first, behind the last.
	Part []int64   `json:"part,omitempty"`
	Done [][]int64 `json:"done,omitempty"`

	// Safe is the id below which no row can appear any more.
	Safe  int64   `json:"safe"`
	Audit []int64 `json:"audit,omitempty"`
	// Expired counts ids that were gone before they could be delivered.
	Expired int64 `json:"expired,omitempty"`
}

// openRead says which rows of a fence's read are settled: those up to id At. The
// read took ids From+1 to Last, and of older holes the ids in Fill.
type openRead struct {
	At   int64   `json:"at"`
	From int64   `json:"from"`
	Fill []int64 `json:"fill,omitempty"`
}

func parseState(c relay.Checkpoint) (*state, error) {
	if len(c.State) == 0 || string(c.State) == "null" {
		return nil, nil //nolint:nilnil // there is no checkpoint yet
	}
	var st state
	if err := json.Unmarshal(c.State, &st); err != nil {
		return nil, relay.Fatal(fmt.Errorf("checkpoint %.100q is not one of ours: %w", c.State, err))
	}
	if st.V != 1 || (st.Mode != modeWindow && st.Mode != modeFence) {
		return nil, relay.Fatal(fmt.Errorf("checkpoint has version %d and mode %q: a newer relay wrote it; run that version", st.V, st.Mode))
	}
	return &st, nil
}

// mark is a strategy's position: all that is delivered up to it and nothing else.
type mark struct {
	lo, hi snapshot // windows
	last   int64    // fence
	holes  []hole
	idle   []writer

	open bool
	at   int64 // rows of the open window or read up to this id are settled
	from int64
	fill []int64
}

func (m *mark) appendJSON(b []byte, mode string) []byte {
	if mode == modeWindow {
		b = append(b, `,"lo":"`...)
		b = append(b, m.lo.text...)
		b = append(b, '"')
		if m.open {
			b = append(b, `,"hi":"`...)
			b = append(b, m.hi.text...)
			b = append(b, '"')
		}
		if m.at != beginning {
			b = append(b, `,"at":`...)
			b = strconv.AppendInt(b, m.at, 10)
		}
		return b
	}
	b = append(b, `,"last":`...)
	b = strconv.AppendInt(b, m.last, 10)
	if len(m.holes) > 0 {
		b = append(b, `,"from":`...)
		b = strconv.AppendInt(b, m.holes[0].lo, 10)
		b = append(b, `,"holes":[`...)
		end := m.holes[0].lo
		for i, h := range m.holes {
			if i > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, h.lo-end, 10)
			b = append(b, ',')
			b = strconv.AppendInt(b, h.hi-h.lo+1, 10)
			end = h.hi + 1
		}
		b = append(b, ']')
		b = m.appendIdle(b)
	}
	if m.open {
		b = append(b, `,"open":{"at":`...)
		b = strconv.AppendInt(b, m.at, 10)
		b = append(b, `,"from":`...)
		b = strconv.AppendInt(b, m.from, 10)
		sep := `,"fill":[`
		for _, id := range m.fill {
			if id > m.at {
				b = append(b, sep...)
				b = strconv.AppendInt(b, id, 10)
				sep = ","
			}
		}
		if sep == "," {
			b = append(b, ']')
		}
		b = append(b, '}')
	}
	return b
}

func (m *mark) appendIdle(b []byte) []byte {
	sep := `,"idle":[["`
	for _, w := range m.idle {
		b = append(b, sep...)
		b = append(b, w.vxid...)
		b = append(b, `","`...)
		b = append(b, w.idle...)
		b = append(b, `","`...)
		b = strconv.AppendInt(b, w.upTo, 10)
		b = append(b, `"]`...)
		sep = `,["`
	}
	if sep == `,["` {
		b = append(b, ']')
	}
	return b
}

// mark is the inverse of appendJSON.
func (st *state) mark() (mark, error) {
	m := mark{at: beginning}
	if st.At != nil {
		m.at = *st.At
	}
	if st.Mode == modeWindow {
		var err error
		if m.lo, err = parseSnapshot(st.Lo); err != nil {
			return m, relay.Fatal(fmt.Errorf("checkpoint: %w", err))
		}
		if st.Hi != "" {
			m.open = true
			if m.hi, err = parseSnapshot(st.Hi); err != nil {
				return m, relay.Fatal(fmt.Errorf("checkpoint: %w", err))
			}
		}
		return m, nil
	}
	m.last = st.Last
	end := st.HoleFrom
	for i := 0; i+1 < len(st.Holes); i += 2 {
		lo := end + st.Holes[i]
		hi := lo + st.Holes[i+1] - 1
		m.holes = append(m.holes, hole{lo: lo, hi: hi})
		end = hi + 1
	}
	for _, w := range st.Idle {
		upTo, err := strconv.ParseInt(w[2], 10, 64)
		if err != nil {
			return m, relay.Fatal(fmt.Errorf("checkpoint: %w", err))
		}
		m.idle = append(m.idle, writer{vxid: w[0], idle: w[1], prepared: w[1] == "", upTo: upTo})
	}
	if st.Open != nil {
		m.open, m.at, m.from, m.fill = true, st.Open.At, st.Open.From, st.Open.Fill
	}
	return m, nil
}

func (o *origin) appendJSON(b []byte) []byte {
	j, err := json.Marshal(o)
	if err != nil {
		panic(err) // strings and numbers
	}
	return append(b, j...)
}
