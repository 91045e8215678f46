package webhookrelay

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// longestDelay bounds what a Retry-After may ask for.
const longestDelay = time.Hour

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

// classifier turns a status into an error of the right class; see the package
// comment's table.
type classifier struct {
	retry      []int
	perMessage bool // the URL depends on the message, so a missing one is the message's fault
}

// classify returns nil for a success.
func (c classifier) classify(status int, detail string, retryAfter time.Duration) error {
	if status >= 200 && status < 300 {
		return nil
	}
	err := error(&statusError{status, detail})
	switch {
	case slices.Contains(c.retry, status):
		return delayed(err, retryAfter)
	case status < 400:
		return relay.Fatal(fmt.Errorf("%w: redirects are not followed; name the final address in webhook_url, or set webhook_follow_redirects for 307 and 308", err))
	}
	switch status {
	case http.StatusNotFound, http.StatusGone:
		if c.perMessage {
			return relay.Permanent(err)
		}
		return relay.Fatal(fmt.Errorf("%w: the endpoint does not exist (any more); correct webhook_url or delete the pipeline", err))
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		return relay.Fatal(fmt.Errorf("%w: the endpoint refuses the relay; correct webhook_signing_secret or the credentials in webhook_headers", err))
	case http.StatusMethodNotAllowed:
		return relay.Fatal(fmt.Errorf("%w: set webhook_method to what the endpoint takes", err))
	case http.StatusUnsupportedMediaType, http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return relay.Fatal(fmt.Errorf("%w: the endpoint takes no request of this kind", err))
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return relay.Permanent(err) // taken off retry_on_status on purpose
	}
	if status < 500 {
		return relay.Permanent(err)
	}
	return delayed(err, retryAfter) // 507, 520 to 530 and their like: a server in trouble
}

func delayed(err error, d time.Duration) error {
	if d > 0 {
		return relay.RetryAfter(err, d)
	}
	return err
}

// retryAfter reads a Retry-After header: seconds or a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	if value == "" {
		return 0
	}
	var d time.Duration
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		d = time.Duration(min(seconds, int64(longestDelay/time.Second))) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), longestDelay)
}

// spreads reports whether err says more about the endpoint than about the
// message, so that there is no point in sending others now.
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
