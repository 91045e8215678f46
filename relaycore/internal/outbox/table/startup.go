package table

import (
	"errors"
	"strconv"
	"strings"
)

// Values of the key startup, beside at:ID.
const (
	StartEarliest = "earliest"
	StartLatest   = "latest"
	StartSnapshot = "snapshot"

	startAt = "at:"
)

// StartID returns the id of at:ID; ok is false for the other values of startup.
func (s *Settings) StartID() (id int64, ok bool) {
	text, ok := strings.CutPrefix(s.Startup, startAt)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseInt(text, 10, 64)
	return id, err == nil
}

// ValidateStartup reports a value of startup that is none.
func (s *Settings) ValidateStartup() error {
	switch s.Startup {
	case StartEarliest, StartLatest, StartSnapshot:
		return nil
	}
	if _, ok := s.StartID(); ok {
		return nil
	}
	return errors.New("must be earliest, latest, snapshot, or at: and the id of a row, as at:4711")
}
