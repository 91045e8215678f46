package store

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
)

// A dead letter can always be stored, whatever the message holds. One that
// PostgreSQL refused would stop its pipeline.

// text replaces what PostgreSQL's text type cannot hold.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

const (
	// maxIndexed is the longest id or key that is stored as it is, in bytes. A row of
	// an index has room for 2,704, which the names of group and pipeline share.
	maxIndexed = 2000
	// shownPrefix is how many bytes of a longer one are kept.
	shownPrefix = 200
)

// indexed returns s, if an index can hold it. Otherwise it returns the beginning of
// s and its hash, which no other string has. Applied to its own result, it returns
// that unchanged, as a redrive needs.
func indexed(s string) string {
	clean := text(s)
	if clean == s && len(s) <= maxIndexed {
		return s
	}
	if len(clean) > shownPrefix {
		clean = strings.ToValidUTF8(clean[:shownPrefix], "") // not half a character
	}
	sum := sha256.Sum256([]byte(s))
	return clean + "#sha256:" + hex.EncodeToString(sum[:])
}

// timestamp returns t in microseconds, or nil if it is not set or out of range.
func timestamp(t time.Time) *time.Time {
	t = t.UTC().Truncate(time.Microsecond)
	if t.IsZero() || t.Year() < 1 || t.Year() > 9999 {
		return nil
	}
	return &t
}
