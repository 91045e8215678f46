package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
)

// Whatever comes from outside, its letter can be stored: a letter that PostgreSQL
// refuses would hold up its pipeline for ever.

// text replaces what PostgreSQL's text type cannot hold.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

const (
	// maxIndexed is how long an id or a key may be, in bytes. A row of an index has
	// room for 2,704, the names of group and pipeline among them.
	maxIndexed = 2000
	// shownPrefix is how much remains of one that cannot be stored.
	shownPrefix = 200
)

// indexed returns s, or where s is too long for an index, or not text, something
// that stands for s and for no other: its beginning and its hash. What it returned
// it returns again when it is given that, as a redrive does.
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

// timestamp returns nil for a time that is not set, or that no clock has shown.
func timestamp(t time.Time) *time.Time {
	if t.IsZero() || t.Year() < 1 || t.Year() > 9999 {
		return nil
	}
	return &t
}
