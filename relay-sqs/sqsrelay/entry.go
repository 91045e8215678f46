package sqsrelay

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Names of our attributes besides those of the standard headers.
const (
	attrDedupKey = "dedup_key"
	attrHeaders  = "Pgtrickle-Headers" // what has no attribute of its own, as a JSON list of pairs
)

// maxAttributes is what SQS allows a message.
const maxAttributes = 10

// entries makes the messages of a batch into entries of requests, and uses its
// memory again for the next batch.
type entries struct {
	fifo    bool
	headers []relay.Header
	extra   [][2]string
}

var stringType = "String" //nolint:gochecknoglobals // a constant that needs an address

// fill makes e the entry for m and returns its size as SQS counts it.
func (w *entries) fill(e *types.SendMessageBatchRequestEntry, m *relay.Message, group string) (int, error) {
	body := string(m.Body)
	if err := checkText(body); err != nil {
		return 0, relay.Permanent(fmt.Errorf("body: %w", err))
	}
	e.MessageBody = &body
	if e.MessageAttributes == nil {
		e.MessageAttributes = make(map[string]types.MessageAttributeValue, maxAttributes)
	} else {
		clear(e.MessageAttributes)
	}
	if w.fifo {
		id, g := token(m.ID), token(group)
		e.MessageDeduplicationId, e.MessageGroupId = &id, &g
	}
	size := len(body)
	for _, h := range w.choose(m) {
		value := h.Value
		e.MessageAttributes[h.Name] = types.MessageAttributeValue{DataType: &stringType, StringValue: &value}
		size += len(h.Name) + len(value) + len(stringType)
	}
	return size, nil
}

// choose returns the attributes of m: its own, and as many of its headers as
// there may be; one more holds the rest.
func (w *entries) choose(m *relay.Message) []relay.Header {
	all := append(w.headers[:0], relay.Header{Name: attrDedupKey, Value: m.ID}, relay.Header{Name: relay.HeaderSubject, Value: m.Subject})
	all = m.WireHeaders(all)
	w.extra = w.extra[:0]
	kept := all[:0]
	for i, h := range all {
		room := len(kept) < maxAttributes-1 || len(kept) == maxAttributes-1 && i == len(all)-1 && len(w.extra) == 0
		if room && validAttribute(h) && !named(kept, h.Name) {
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

func named(headers []relay.Header, name string) bool {
	for i := range headers {
		if strings.EqualFold(headers[i].Name, name) {
			return true
		}
	}
	return false
}

// validAttribute reports whether SQS takes h for an attribute.
func validAttribute(h relay.Header) bool {
	if h.Name == "" || len(h.Name) > 256 || h.Name[0] == '.' || strings.HasSuffix(h.Name, ".") || strings.Contains(h.Name, "..") {
		return false
	}
	lower := strings.ToLower(h.Name)
	if strings.HasPrefix(lower, "aws.") || strings.HasPrefix(lower, "amazon.") {
		return false
	}
	for i := range len(h.Name) {
		c := h.Name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' && c != '.' {
			return false
		}
	}
	return checkText(h.Value) == nil
}

var errEmpty = errors.New("is empty, and SQS takes no empty text")

// checkText returns an error that names the first character that SQS refuses:
// it takes those that XML has.
func checkText(s string) error {
	if s == "" {
		return errEmpty
	}
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c < utf8.RuneSelf || c == '\n' || c == '\t' || c == '\r' {
			i++
			continue
		}
		if c < 0x20 {
			return fmt.Errorf("has the control character 0x%02x at byte %d, which SQS refuses", c, i)
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			return fmt.Errorf("is not UTF-8 at byte %d, which SQS refuses", i)
		}
		if r == 0xFFFE || r == 0xFFFF {
			return fmt.Errorf("has the character %U at byte %d, which SQS refuses", r, i)
		}
		i += n
	}
	return nil
}

// token returns s where it may be a group or deduplication id, else its SHA-256:
// SQS allows up to 128 of the printable ASCII characters other than the space.
func token(s string) string {
	ok := s != "" && len(s) <= 128
	for i := 0; ok && i < len(s); i++ {
		ok = s[i] > ' ' && s[i] < 0x7f
	}
	if ok {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

var entryIDs = [maxEntries]string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"} //nolint:gochecknoglobals // constants that need addresses

func entryIndex(id *string) int {
	i, err := strconv.Atoi(text(id))
	if err != nil || i < 0 || i >= maxEntries {
		return -1
	}
	return i
}
