package webhookrelay

import (
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

const (
	modeEvent = "event"
	modeBatch = "batch"
)

type sinkConfig struct {
	URL             relay.Template            `json:"url" relay:"required,secret" doc:"Where to send to, http or https; variables may stand in the path and the query, where their values are escaped."`
	Method          string                    `json:"method" relay:"enum=POST|PUT|PATCH" doc:"Method of the request."`
	Headers         map[string]relay.Template `json:"headers" doc:"Further headers; their values take variables."`
	Mode            string                    `json:"mode" relay:"enum=event|batch" doc:"One request per event, or one for many with a JSON array as its body."`
	BatchMode       bool                      `json:"batch_mode" doc:"True is the same as mode batch."`
	BatchMessages   int                       `json:"batch_messages" relay:"min=1" doc:"Maximum of events in one request of mode batch."`
	BatchBytes      relaycfg.Size             `json:"batch_bytes" relay:"min=1" doc:"Maximum of bytes in the body of one request of mode batch; a larger event is sent alone."`
	Concurrency     int                       `json:"concurrency" relay:"min=1" doc:"Requests at a time in mode event; events of one key are sent one after the other."`
	ConfirmTimeout  relaycfg.Duration         `json:"confirm_timeout" relay:"min=1,alias=timeout" doc:"Time for one request, until its answer has been read."`
	RetryOnStatus   relaycfg.Ints             `json:"retry_on_status" doc:"Statuses of the answer that are tried again."`
	SigningSecret   relaycfg.Secrets          `json:"signing_secret" doc:"Secrets that sign each request as Standard Webhooks has it; several, for rotation, give several signatures. whsec_ is followed by base64, anything else is taken as it is."`
	AllowPrivate    bool                      `json:"allow_private" doc:"Send to loopback, private and other addresses that are not public. The relay's flag --allow-private overrides it."`
	FollowRedirects bool                      `json:"follow_redirects" doc:"Follow an answer of 307 or 308; another host gets none of headers. Without it, and for any other 3xx, a redirect is a failure."`
	relaynet.TLS

	base    *url.URL // scheme, user, host and port of URL
	fixed   *url.URL // nil where URL has variables
	secrets [][]byte
}

func sinkDefaults() sinkConfig {
	return sinkConfig{
		Method:         "POST",
		Mode:           modeEvent,
		BatchMessages:  1000,
		BatchBytes:     1 << 20,
		Concurrency:    16,
		ConfirmTimeout: relaycfg.Duration(10 * time.Second),
		RetryOnStatus:  relaycfg.Ints{408, 429, 500, 502, 503, 504},
	}
}

// Validate checks keys that depend on each other.
func (c *sinkConfig) Validate() (err error) {
	if err := c.parseURL(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		switch {
		case !validName(name):
			return relaycfg.Errorf("headers."+name, "is not a valid name of a header")
		case reservedHeader(name):
			return relaycfg.Errorf("headers."+name, "is written by the relay or by HTTP itself; leave it out")
		}
	}
	for _, status := range c.RetryOnStatus {
		if status < 300 || status > 599 {
			return relaycfg.Errorf("retry_on_status", "has %d; a status that can be tried again lies between 300 and 599", status)
		}
	}
	if c.secrets, err = decodeSecrets("signing_secret", c.SigningSecret); err != nil {
		return err
	}
	if c.BatchMode {
		c.Mode = modeBatch
	}
	return nil
}

// parseURL requires a fixed scheme and host: a row must not choose the receiver of
// requests and their secrets.
func (c *sinkConfig) parseURL() (err error) {
	scheme, host, _ := strings.Cut(c.URL.String(), "://")
	if scheme != "http" && scheme != "https" {
		return relaycfg.Errorf("url", "must begin with http:// or https://")
	}
	if end := strings.IndexAny(host, "/?#"); end >= 0 {
		host = host[:end]
	}
	if strings.ContainsAny(host, "{}") {
		return relaycfg.Errorf("url", "has a variable in its host; variables may stand in the path and the query only")
	}
	if c.base, err = url.Parse(scheme + "://" + host); err != nil || c.base.Hostname() == "" {
		return relaycfg.Errorf("url", "has no valid host")
	}
	if c.URL.Fixed() {
		if c.fixed, err = url.Parse(c.URL.String()); err != nil {
			return relaycfg.Errorf("url", "is not a URL")
		}
	}
	return nil
}

// The ways in which a request to the source can prove where it comes from.
const (
	authNone     = "none"
	authBearer   = "bearer"
	authHMAC     = "hmac"
	authStandard = "standard-webhooks"
	authGitHub   = "github"
	authStripe   = "stripe"
)

type sourceConfig struct {
	Bind            string            `json:"bind" relay:"alias=listen_addr" doc:"Address to listen on. Pipelines of one process share it."`
	Path            string            `json:"path" doc:"Path that belongs to this pipeline."`
	MaxBody         relaycfg.Size     `json:"max_body" relay:"min=1,alias=max_body_bytes" doc:"Largest body; a larger one is answered with 413."`
	MaxPending      relaycfg.Size     `json:"max_pending" relay:"min=1" doc:"Bytes that may wait for the inbox, bodies and 1 KiB for each event; beyond it requests are answered with 429."`
	Auth            string            `json:"auth" relay:"required,enum=none|bearer|hmac|standard-webhooks|github|stripe" doc:"How a request proves where it comes from; write none to accept all requests."`
	Secret          relaycfg.Secrets  `json:"secret" relay:"alias=auth_value" doc:"Secrets or tokens of auth; any of several will do."`
	AuthHeader      string            `json:"auth_header" doc:"Header that carries the token of auth bearer."`
	SignatureHeader string            `json:"signature_header" doc:"Header that carries the signature of auth hmac."`
	TimestampHeader string            `json:"timestamp_header" doc:"Header with the seconds since 1970 of auth hmac, whose signature then covers TIME.BODY; without it, a signature has no age."`
	Tolerance       relaycfg.Duration `json:"tolerance" relay:"min=1" doc:"How far a signed timestamp may be from our clock."`
	OnMissingID     string            `json:"on_missing_id" relay:"enum=refuse|hash" doc:"What to do with an event that has no id: answer with 400, or make the hash of its body its id."`
	SplitArrays     bool              `json:"split_arrays" doc:"Take a JSON array as a batch of events rather than as one event."`
	AckTimeout      relaycfg.Duration `json:"ack_timeout" relay:"min=1" doc:"How long a request waits for the inbox before it is answered with 503."`
	relaynet.ServerTLS

	secrets [][]byte
}

// defaultBind keeps other machines out until an operator lets them in.
const defaultBind = "127.0.0.1:8080"

func sourceDefaults() sourceConfig {
	return sourceConfig{
		Bind:            defaultBind,
		Path:            "/events",
		MaxBody:         1 << 20,
		MaxPending:      16 << 20,
		AuthHeader:      "Authorization",
		SignatureHeader: "X-Webhook-Signature",
		Tolerance:       relaycfg.Duration(5 * time.Minute),
		OnMissingID:     "refuse",
		SplitArrays:     true,
		AckTimeout:      relaycfg.Duration(30 * time.Second),
	}
}

// open reports whether requests prove nothing.
func (c *sourceConfig) open() bool { return c.Auth == authNone && c.ClientCA == "" }

// Validate checks keys that depend on each other.
func (c *sourceConfig) Validate() (err error) {
	switch {
	case !strings.HasPrefix(c.Path, "/") || strings.ContainsAny(c.Path, "?# "):
		return relaycfg.Errorf("path", "is %q; must be a path that begins with /", c.Path)
	case c.Auth == authNone && len(c.Secret) > 0:
		return relaycfg.Errorf("secret", "has no effect with auth none; set auth")
	case c.Auth != authNone && len(c.Secret) == 0:
		return relaycfg.Errorf("secret", "is required with auth %s", c.Auth)
	case c.TimestampHeader != "" && c.Auth != authHMAC:
		return relaycfg.Errorf("timestamp_header", "has no effect with auth %s; only auth hmac reads it", c.Auth)
	case c.TimestampHeader != "" && !validName(c.TimestampHeader):
		return relaycfg.Errorf("timestamp_header", "is not a valid name of a header")
	case c.MaxPending < c.MaxBody+eventOverhead:
		return relaycfg.Errorf("max_pending", "is %d bytes; must be at least %d: max_body and 1 KiB for the largest body",
			c.MaxPending, c.MaxBody+eventOverhead)
	case !validName(c.AuthHeader):
		return relaycfg.Errorf("auth_header", "is not a valid name of a header")
	case !validName(c.SignatureHeader):
		return relaycfg.Errorf("signature_header", "is not a valid name of a header")
	}
	if c.Auth == authStandard {
		c.secrets, err = decodeSecrets("secret", c.Secret)
		return err
	}
	for _, s := range c.Secret {
		if s == "" {
			return relaycfg.Errorf("secret", "is empty")
		}
		c.secrets = append(c.secrets, []byte(s.Reveal()))
	}
	return nil
}
