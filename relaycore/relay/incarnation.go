package relay

import (
	"net/url"
	"strings"
)

// Incarnation identifies one life of a far end: the time when a stream was created,
// a topic's id, a server's run id. A stream that was deleted and created again has
// the same name and another incarnation. A position in one incarnation has no meaning
// in another.
//
// An Incarnation travels with a position as one string, so that a checkpoint or
// [Resumer] stores both.
type Incarnation string

const (
	incarnationPrefix = "incarnation="
	incarnationEnd    = ";"
)

// Join returns position together with the incarnation to which it belongs. Without
// an incarnation it returns position as it is.
func (in Incarnation) Join(position string) string {
	if in == "" {
		return position
	}
	return incarnationPrefix + url.QueryEscape(string(in)) + incarnationEnd + position
}

// SplitPosition takes apart what Join made. A string that Join did not make is a
// position of an unknown incarnation, "".
func SplitPosition(stored string) (in Incarnation, position string) {
	rest, ok := strings.CutPrefix(stored, incarnationPrefix)
	if !ok {
		return "", stored
	}
	escaped, position, ok := strings.Cut(rest, incarnationEnd)
	id, err := url.QueryUnescape(escaped)
	if !ok || err != nil {
		return "", stored
	}
	return Incarnation(id), position
}

// Same reports whether other is the same incarnation, as far as is known: an
// incarnation that is not known is the same as any.
func (in Incarnation) Same(other Incarnation) bool { return in == "" || other == "" || in == other }
