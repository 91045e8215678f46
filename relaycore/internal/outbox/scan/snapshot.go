package scan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// snapshot is a pg_snapshot. Transactions below xmin have ended, and those from xmax on
// have not begun. Of those between the two, the ones in xip were running.
type snapshot struct {
	text       string // PostgreSQL's own spelling
	xmin, xmax uint64
	xip        []uint64
}

// nothing is a snapshot that sees no row: 3 is the lowest transaction id that
// PostgreSQL assigns.
var nothing = snapshot{text: "3:3:", xmin: 3, xmax: 3}

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

// sees is PostgreSQL's pg_visible_in_snapshot.
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

// arms returns the ranges of transaction ids whose rows s may not see, as array literals
// of their ends. These are each transaction that was running, and those from xmax to hi.
func (s *snapshot) arms(hi uint64) (los, his string) {
	running := s.xipList()
	if running != "" {
		running += ","
	}
	return "{" + running + strconv.FormatUint(s.xmax, 10) + "}", "{" + running + strconv.FormatUint(hi, 10) + "}"
}
