package relay

import "strings"

// CloudEventsSource begins the source of the CloudEvents that the relay makes; the
// stream table follows.
const CloudEventsSource = "/pgtrickle/"

// CloudEventID identifies a CloudEvents event by its source and id. An id is unique
// within its source only, but for those of our own events, which are by themselves.
func CloudEventID(source, id string) string {
	if source == "" || strings.HasPrefix(source, CloudEventsSource) {
		return id
	}
	return source + "#" + id
}
