package outbox

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// snapshot is a pg_snapshot: transactions below xmin have ended, those from xmax
// on have not begun, and between the two those in xip were running.
type snapshot struct {
	text       string // as PostgreSQL prints it
	xmin, xmax uint64
	xip        []uint64
}

// nothing is a snapshot in which no row is visible: 3 is the first number that
// PostgreSQL ever gives to a transaction.
var nothing = snapshot{text: "3:3:", xmin: 3, xmax: 3} //nolint:gochecknoglobals // a constant

func parseSnapshot(text string) (snapshot, error) {
	s := snapshot{text: text}
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return snapshot{}, fmt.Errorf("parse snapshot %q", text)
	}
	var err error
	if s.xmin, err = strconv.ParseUint(parts[0], 10, 64); err != nil {
		return snapshot{}, fmt.Errorf("parse snapshot %q: %w", text, err)
	}
	if s.xmax, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return snapshot{}, fmt.Errorf("parse snapshot %q: %w", text, err)
	}
	if parts[2] != "" {
		for p := range strings.SplitSeq(parts[2], ",") {
			x, err := strconv.ParseUint(p, 10, 64)
			if err != nil {
				return snapshot{}, fmt.Errorf("parse snapshot %q: %w", text, err)
			}
			s.xip = append(s.xip, x)
		}
	}
	return s, nil
}

// sees is pg_visible_in_snapshot.
func (s *snapshot) sees(xid uint64) bool {
	if xid < s.xmin {
		return true
	}
	if xid >= s.xmax {
		return false
	}
	_, running := slices.BinarySearch(s.xip, xid)
	return !running
}

// xipList renders the running transactions as the inside of an array literal.
func (s *snapshot) xipList() string {
	return s.text[strings.LastIndexByte(s.text, ':')+1:]
}
