package webhookrelay

import (
	"net/textproto"
	"net/url"
	"strings"
	"unicode/utf8"
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

// extended is appended to the name of a header whose value cannot travel as it
// is. The value is then of the form of RFC 8187: UTF-8” and percent-encoding.
const (
	extended       = "*"
	extendedPrefix = "UTF-8''"
)

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

// validValue reports whether s arrives as it is: no control characters, and no
// space at either end, which receivers drop.
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return s == "" || (!isSpace(s[0]) && !isSpace(s[len(s)-1]))
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

func encodeExtended(s string) string {
	return extendedPrefix + strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

func decodeExtended(s string) (string, bool) {
	encoded, ok := strings.CutPrefix(s, extendedPrefix)
	if !ok {
		return "", false
	}
	v, err := url.PathUnescape(encoded)
	return v, err == nil
}
