package scan

import (
	"fmt"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
)

// intake passes the rows of one read to take, and counts them.
type intake struct {
	take    Take
	ordered bool // ids must ascend

	last     int64 // id
	rows     int
	declined bool // by take
}

// row takes a row whose first column is its id.
func (n *intake) row(v [][]byte) (bool, error) {
	id, err := rows.ParseID(v[0])
	if err != nil {
		return false, err
	}
	if n.ordered && n.rows > 0 && id <= n.last {
		return false, fmt.Errorf("ids are not unique or not in order: %d after %d", id, n.last)
	}
	n.last = id
	n.rows++
	more, err := n.take(v, id)
	n.declined = n.declined || !more
	return more, err
}
