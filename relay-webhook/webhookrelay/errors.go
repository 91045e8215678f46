package webhookrelay

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

const (
	maxDetail = 256 // bytes of an answer that an error quotes
	minToken  = 8   // bytes; a shorter part of a URL is not taken for a secret
)

var errTimeout = errors.New("no answer in time")

// maxDelay bounds the delay of a Retry-After header.
const maxDelay = time.Hour

// statusError is an answer that is not a success.
type statusError struct {
	status int
	detail string // the beginning of the answer's body
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("answer %d %s", e.status, http.StatusText(e.status))
	if e.detail != "" {
		text += ": " + strconv.Quote(e.detail)
	}
	return text
}

// onList is the answer whose status retry_on_status has.
const onList = "retry_on_status"

// refusals are the statuses. The note of a refusal that stops the pipeline is its cure.
var refusals = relay.Refusals{
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: onList, Note: "by default 408, 429, 500, 502, 503 and 504"},
	{Kind: relay.KindTooLarge, Blame: relay.BlameMessage, Answer: "413|431"},
	{Kind: relay.KindBadName, Blame: relay.BlameMessage, Answer: "414", Note: "the URL is too long"},
	{Kind: relay.KindMissing, Blame: relay.BlameDestination, Answer: "404|410", Note: "the endpoint does not exist; correct webhook_url"},
	{Kind: relay.KindDenied, Blame: relay.BlameDestination, Answer: "403", Note: refused},
	{Kind: relay.KindWrongType, Blame: relay.BlameDestination, Answer: "405", Note: "set webhook_method to a method that it allows"},
	{Kind: relay.KindFull, Blame: relay.BlameNothing, Answer: "507"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "401|407", Note: refused},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "3*", Note: "redirects are not followed; set webhook_url to the final " +
		"address, or webhook_follow_redirects"},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "415|501|505", Note: "the endpoint refuses requests of this kind"},
	{Kind: relay.KindInvalid, Blame: relay.BlameMessage, Answer: "4*", Note: "422 and all other 4xx"},
	{Kind: relay.KindInvalid, Blame: relay.BlameMessage, Answer: "500|502|503|504", Note: "where retry_on_status leaves them out"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "5*", Note: "520 to 530 and their like"},
}

const refused = "the endpoint refuses the relay; correct webhook_signing_secret or webhook_headers"

// classifyTLS marks the error of a handshake that does not pass by itself.
func classifyTLS(err error) error {
	_, garbage := errors.AsType[tls.RecordHeaderError](err)
	_, wrong := errors.AsType[*relaynet.WrongPeerError](err)
	if garbage || wrong {
		return relay.Fatal(fmt.Errorf("%w; does the server speak TLS at this port?", err))
	}
	return relaynet.Classify("webhook", err)
}

// classifier turns a status into an error of the right class.
type classifier struct {
	retry      []int
	perMessage bool // the URL depends on the message, so the refusal of one is the message's fault
}

// classify returns nil for a success.
func (c classifier) classify(status int, detail string, retryAfter time.Duration) error {
	if status >= 200 && status < 300 {
		return nil
	}
	answer := strconv.Itoa(status)
	if slices.Contains(c.retry, status) {
		answer = onList
	}
	err := error(&statusError{status, detail})
	row, classified := refusals.Find(answer), refusals.Classify(err, answer, c.perMessage)
	switch {
	case relay.IsFatal(classified):
		return relay.Fatal(fmt.Errorf("%w: %s", err, row.Note))
	case row.Blame == relay.BlameNothing:
		return relay.RetryAfter(err, retryAfter)
	}
	return classified
}

// retryAfter reads a Retry-After header: seconds or a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	if value == "" {
		return 0
	}
	var d time.Duration
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		d = time.Duration(min(seconds, int64(maxDelay/time.Second))) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), maxDelay)
}

// spreads reports whether err is the endpoint's and not the message's, so that other
// messages would fail too.
func spreads(err error) bool {
	if err == nil || relay.IsPermanent(err) {
		return false
	}
	if relay.IsFatal(err) {
		return true
	}
	var status *statusError
	if errors.As(err, &status) {
		switch status.status {
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return status.status > http.StatusGatewayTimeout
	}
	return true // the network
}

// hide removes the parts of the URL that an answer repeats, because one of them may
// be a token. It returns little more than an error quotes: an answer can be long,
// and is copied once for each part.
func hide(answer []byte, u *url.URL) []byte {
	answer = answer[:min(len(answer), maxDetail+len(u.RequestURI()))]
	parts := bytes.FieldsFunc([]byte(u.RequestURI()), func(r rune) bool { return strings.ContainsRune("/?&=", r) })
	for _, part := range parts {
		if len(part) < minToken {
			continue
		}
		answer = bytes.ReplaceAll(answer, part, []byte("…"))
		for n := len(part) - 1; n >= minToken/2; n-- { // the answer may end inside the token
			answer = bytes.TrimSuffix(answer, part[:n])
		}
	}
	return answer
}

func excerpt(answer []byte) string {
	text := bytes.ToValidUTF8(answer[:min(len(answer), maxDetail)], []byte(string(utf8.RuneError)))
	return strings.TrimSpace(string(text))
}
