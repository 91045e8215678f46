package webhookrelay

import (
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Names of headers, in canonical form.
const (
	headerIdempotencyKey   = "Idempotency-Key"
	headerWebhookID        = "Webhook-Id"
	headerWebhookTimestamp = "Webhook-Timestamp"
	headerWebhookSignature = "Webhook-Signature"
	headerBatch            = "Pgtrickle-Batch"
	headerHost             = "Host"
	headerUserAgent        = "User-Agent"
)

const (
	userAgent   = "pgtrickle-relay"
	usualFields = 14 // of a header; more make its map twice as large
)

// A header whose value HTTP cannot carry gets a name with an asterisk and a value
// in the form of RFC 8187: UTF-8” and percent-encoding.
const (
	extended       = "*"
	extendedPrefix = "UTF-8''"
)

// head is the header of one request. The transport may read it after the request
// has been answered, so it is never used again.
type head struct {
	http.Header
	host   string
	values []string // the header's one-element slices point into it
}

func newHead() *head {
	h := &head{Header: make(http.Header, usualFields), values: make([]string, 0, usualFields)}
	h.set(headerUserAgent, userAgent)
	return h
}

// set stores a value under a canonical name.
func (h *head) set(name, value string) {
	n := len(h.values)
	h.values = append(h.values, value)
	h.Header[name] = h.values[n : n+1 : n+1]
}

// add stores a header of a message. The relay's own headers take the extended form
// where their value needs it; such a value in a user's header is refused.
func (h *head) add(name, value string) error {
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	switch {
	case !validName(canonical):
		return relay.Fatal(fmt.Errorf("header %q: is not a valid name", name))
	case reservedHeader(canonical):
		return relay.Fatal(fmt.Errorf("header %q: is written by the relay or by HTTP; remove it from headers", name))
	case validValue(value):
	case strings.HasPrefix(canonical, "Pgtrickle-"):
		canonical, value = canonical+extended, encodeExtended(value)
	default:
		return relay.Permanent(fmt.Errorf("header %q: value has a control character or a space at an end", name))
	}

	if canonical == headerHost {
		h.host = value
		return nil
	}
	h.set(canonical, value)
	return nil
}

func reservedHeader(name string) bool {
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case headerIdempotencyKey, headerWebhookID, headerWebhookTimestamp, headerWebhookSignature,
		"Connection", "Content-Length", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect":
		return true
	}
	return false
}

// validName reports whether s is a token of RFC 9110.
func validName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}

// validValue reports whether s arrives unchanged: it has no control character, and
// no space at either end, which receivers drop.
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return strings.Trim(s, " \t") == s
}

func encodeExtended(s string) string { return extendedPrefix + escape(s) }

func decodeExtended(s string) (string, bool) {
	encoded, ok := strings.CutPrefix(s, extendedPrefix)
	if !ok {
		return "", false
	}
	v, err := url.PathUnescape(encoded)
	return v, err == nil
}

// escape makes a value safe in a path and in a query alike.
func escape(value string) string { return strings.ReplaceAll(url.QueryEscape(value), "+", "%20") }
