package rows

// Slot is a message, or a row without messages, that is being delivered. The Token of
// a message is a pointer to its slot.
type Slot struct {
	ID      int64 // of the row
	Index   int32 // of the message in the row; -1 = the row has no messages
	End     bool  // it is the row's last
	Settled bool
	Owner   *Owner
}

// Owner identifies the tracker that a slot belongs to. A source that has reopened its
// outbox ignores messages of the tracker before.
type Owner struct{ _ byte }

// Run is a range of messages of a row: from index First up to, without, End.
type Run struct{ First, End int64 }

// Settled lists messages that were settled before the source was opened, by row.
type Settled map[int64][]Run

func (s Settled) has(id, index int64) bool {
	for _, run := range s[id] {
		if run.First <= index && index < run.End {
			return true
		}
	}
	return false
}
