package webhookrelay

import (
	"crypto/tls"
	"net/http"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

const (
	writeBuffer    = 16 << 10 // holds the header and a small body, which then leave in one packet
	maxAnswerHead  = 64 << 10 // bytes of an answer's header
	idleConnection = 90 * time.Second
)

// newDialer returns the dialer of an endpoint. It refuses addresses that are not
// public unless allow_private is set, or those that the operator's control refuses.
func newDialer(cfg *sinkConfig, control relaynet.Control) *relaynet.Dialer {
	d := &relaynet.Dialer{Timeout: cfg.ConfirmTimeout.D(), Wrap: peer.HTTP, Control: control}
	if control == nil && !cfg.AllowPrivate {
		d.Control = relaynet.PublicOnly("set webhook_allow_private to true if this is intended")
	}
	return d
}

var peer = relaynet.Peer{Key: "webhook_url", Name: "HTTP server", TLS: "https:// in webhook_url"}

// newTransport returns a transport that keeps a connection for each concurrent
// request. It uses no proxy: behind a proxy the guard would not see the endpoint.
func newTransport(cfg *sinkConfig, dialer *relaynet.Dialer, tlsConfig *tls.Config) *http.Transport {
	return &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    cfg.ConfirmTimeout.D(),
		ForceAttemptHTTP2:      true,
		MaxConnsPerHost:        cfg.Concurrency,
		MaxIdleConnsPerHost:    cfg.Concurrency,
		IdleConnTimeout:        idleConnection,
		WriteBufferSize:        writeBuffer,
		MaxResponseHeaderBytes: maxAnswerHead,
		DisableCompression:     true,
	}
}

// checkRedirect follows a redirect to HTTP that keeps method, body and encryption. Another
// host gets no header of the configuration, and no host the address that led to it: both
// can hold secrets.
func (c *sinkConfig) checkRedirect(next *http.Request, via []*http.Request) error {
	first, scheme := via[0], next.URL.Scheme
	if len(via) >= 5 || next.Method != first.Method || scheme != "https" && (scheme != "http" || first.URL.Scheme == "https") {
		return http.ErrUseLastResponse
	}
	next.Header.Del("Referer")
	if next.URL.Hostname() != first.URL.Hostname() {
		next.Header.Del("Authorization") // of the URL's user
		for name := range c.Headers {
			next.Header.Del(name)
		}
	}
	return nil
}
