package outbox

// audit counts the rows that were settled, by ranges of ids, so that they can be
// held against the rows that the table has.
type audit struct{ from int64 }

func (a *audit) count(int64) {}

func (a *audit) parse([]int64) {}

func (a *audit) appendJSON(b []byte) []byte { return b }
