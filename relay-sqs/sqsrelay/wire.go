package sqsrelay

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Names of our attributes besides those of the standard headers.
const (
	attrDedupKey = "dedup_key"
	attrHeaders  = "Pgtrickle-Headers" // what has no attribute of its own, as a JSON list of pairs
)

// maxAttributes is how many attributes SQS allows a message.
const maxAttributes = 10

// entries makes entries of requests from messages, in memory that it uses again.
type entries struct {
	fifo    bool
	headers []relay.Header
	extra   [][2]string
}

var stringType = "String" // a constant that needs an address

// fill makes e the entry for m and returns its size as SQS counts it. The entry points into
// values.
func (w *entries) fill(e *types.SendMessageBatchRequestEntry, values *[maxAttributes]string, m *relay.Message, group string) (int, error) {
	body := string(m.Body)
	if err := checkText(body); err != nil {
		return 0, relay.Permanent(fmt.Errorf("body: %w", err))
	}
	e.MessageBody = &body
	if clear(e.MessageAttributes); e.MessageAttributes == nil {
		e.MessageAttributes = make(map[string]types.MessageAttributeValue, maxAttributes)
	}
	if w.fifo {
		id, g := token(m.Delivery()), token(group)
		e.MessageDeduplicationId, e.MessageGroupId = &id, &g
	}
	size := len(body)
	for i, h := range w.choose(m) {
		values[i] = h.Value
		e.MessageAttributes[h.Name] = types.MessageAttributeValue{DataType: &stringType, StringValue: &values[i]}
		size += len(h.Name) + len(h.Value) + len(stringType)
	}
	return size, nil
}

// choose returns the attributes of m: its own, and as many of its headers as SQS
// allows. One more attribute holds the rest.
func (w *entries) choose(m *relay.Message) []relay.Header {
	all := append(w.headers[:0], relay.Header{Name: attrDedupKey, Value: m.ID}, relay.Header{Name: relay.HeaderSubject, Value: m.Subject})
	all = m.WireHeaders(all)
	w.extra = w.extra[:0]
	kept := all[:0]
	for i, h := range all {
		room := len(kept) < maxAttributes-1 || len(kept) == maxAttributes-1 && i == len(all)-1 && len(w.extra) == 0
		if room && validAttribute(h) && !slices.ContainsFunc(kept, func(k relay.Header) bool { return strings.EqualFold(k.Name, h.Name) }) {
			kept = append(kept, h)
		} else if h.Value != "" || i > 1 {
			w.extra = append(w.extra, [2]string{h.Name, h.Value})
		}
	}
	if len(w.extra) > 0 {
		rest, err := json.Marshal(w.extra)
		if err == nil {
			kept = append(kept, relay.Header{Name: attrHeaders, Value: string(rest)})
		}
	}
	w.headers = all
	return kept
}

// validAttribute reports whether SQS accepts h as an attribute.
func validAttribute(h relay.Header) bool { return validName(h.Name) && checkText(h.Value) == nil }

// validName reports whether SQS accepts s as the name of an attribute. It may have up to
// 256 letters, digits, underscores, hyphens and single dots between them. Two prefixes are
// Amazon's own. No regular expression: it cost a twelfth of the sink's time.
func validName(s string) bool {
	foreign := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-' && r != '.'
	}
	reserved := func(prefix string) bool { return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) }
	return s != "" && len(s) <= 256 && !strings.ContainsFunc(s, foreign) &&
		s[0] != '.' && s[len(s)-1] != '.' && !strings.Contains(s, "..") && !reserved("aws.") && !reserved("amazon.")
}

var errEmpty = errors.New("is empty, and SQS refuses empty text")

// checkText returns an error that names the first character that SQS refuses: one
// that XML forbids.
func checkText(s string) error {
	if s == "" {
		return errEmpty
	}
	for i, r := range s {
		switch {
		case ' ' <= r && r < utf8.RuneSelf:
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			return fmt.Errorf("is not UTF-8 at byte %d, which SQS refuses", i)
		case r < ' ' && r != '\n' && r != '\t' && r != '\r':
			return fmt.Errorf("has the control character 0x%02x at byte %d, which SQS refuses", r, i)
		case r == 0xFFFE || r == 0xFFFF:
			return fmt.Errorf("has the character %U at byte %d, which SQS refuses", r, i)
		}
	}
	return nil
}

// token returns s if it may be a group or deduplication id, else its SHA-256. SQS
// allows up to 128 printable ASCII characters other than the space.
func token(s string) string {
	if s != "" && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return s
	}
	return relay.Hash([]byte(s))
}

var entryIDs = [maxEntries]string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"} // constants that need addresses

// entryIndex returns the index of the entry with id among n, or -1.
func entryIndex(id *string, n int) int { return slices.Index(entryIDs[:n], aws.ToString(id)) }
