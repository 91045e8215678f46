package outbox

import (
	"strconv"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Expects implements [relay.Expecter], by the numbers that an id is made of. It
// may take a message for one to come that is settled already, in front of others
// that are not.
func (s *Source) Expects(id string) bool {
	rest, ours := strings.CutPrefix(id, s.shape.Load().name+":")
	first, second, both := strings.Cut(rest, ":")
	row, err := strconv.ParseInt(first, 10, 64)
	index, err2 := strconv.ParseInt(second, 10, 64)
	return ours && both && err == nil && err2 == nil && s.settler.Load().open(row, index)
}

var _ relay.Expecter = (*Source)(nil)

// open reports whether a message may be unsettled.
func (s *settler) open(row, index int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if row <= s.safe || row == s.part[0] && index < s.part[1] {
		return false
	}
	for _, d := range s.done {
		if d[0] == row && d[1] <= index && index < d[2] {
			return false
		}
	}
	return true
}
