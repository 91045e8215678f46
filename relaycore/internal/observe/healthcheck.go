package observe

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
)

// CheckHealth requests the health of the relay that serves e on this machine, and returns
// an error unless it is healthy. live requests /livez in place of /health; it only shows
// that the process runs. A url replaces both, and is sent no token.
func (e *Endpoint) CheckHealth(ctx context.Context, url string, live bool) error {
	req, transport, err := e.healthRequest(ctx, url, live)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return fmt.Errorf("healthcheck: %w", err)
	}
	defer resp.Body.Close()

	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("healthcheck: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("healthcheck: %s answered %s: %s", req.URL, resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

func (e *Endpoint) healthRequest(ctx context.Context, url string, live bool) (*http.Request, *http.Transport, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	if url != "" {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		return req, transport, err
	}
	url, err := e.localURL(live)
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, nil, err
	}
	if e.TokenFile != "" {
		token, err := readToken(e.TokenFile)
		if err != nil {
			return nil, nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if e.TLSCert != "" {
		transport.TLSClientConfig, err = e.trustOnly()
	}
	return req, transport, err
}

func (e *Endpoint) localURL(live bool) (string, error) {
	host, port, err := net.SplitHostPort(e.Addr)
	if err != nil {
		return "", fmt.Errorf("--metrics-addr: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}

	scheme, path := "http", "/health"
	if e.TLSCert != "" {
		scheme = "https"
	}
	if live {
		path = "/livez"
	}
	return scheme + "://" + net.JoinHostPort(host, port) + path, nil
}

// trustOnly returns a configuration that accepts the certificate of e alone, whatever
// its names are.
func (e *Endpoint) trustOnly() (*tls.Config, error) {
	content, err := os.ReadFile(e.TLSCert)
	if err != nil {
		return nil, fmt.Errorf("--metrics-tls-cert: %w", err)
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, fmt.Errorf("--metrics-tls-cert: %s is not PEM", e.TLSCert)
	}
	return &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection compares the certificate itself
		VerifyConnection: func(s tls.ConnectionState) error {
			if !bytes.Equal(s.PeerCertificates[0].Raw, block.Bytes) {
				return errors.New("the server has another certificate than --metrics-tls-cert")
			}
			return nil
		},
	}, nil
}
