package redisrelay

import (
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// The fields of every entry. A header of the same name is written with
// headerPrefix, as go-redis and many other clients keep the last of two fields.
const (
	fieldID      = "dedup_key"
	fieldSubject = "subject"
	fieldOp      = "op"
	fieldPayload = "payload"

	fieldPipeline = "pgtrickle-pipeline-id" // of entries that a pipeline wrote

	headerPrefix = "header:"
)

// fieldName returns the field that carries a header.
func fieldName(header string) string {
	switch header { // the standard ones cost nothing
	case relay.HeaderOutboxID:
		return "pgtrickle-outbox-id"
	case relay.HeaderFullRefresh:
		return "pgtrickle-full-refresh"
	case relay.HeaderKey:
		return "pgtrickle-key"
	case relay.HeaderContentType:
		return "content-type"
	case relay.HeaderPipelineID:
		return fieldPipeline
	case relay.HeaderTraceparent:
		return header
	}
	name := strings.ToLower(header)
	switch name {
	case fieldID, fieldSubject, fieldOp, fieldPayload:
		return headerPrefix + name
	}
	return name
}
