package relaycmd

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
	"time"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
)

const healthcheckTimeout = 4 * time.Second

type healthcheckOptions struct {
	url  string
	live bool
}

func (p *program) healthcheckCommand() *ffcli.Command {
	var o healthcheckOptions
	fs := p.flagSet()
	fs.StringVar(&o.url, "url", "", "`URL` to request; default: /health, or /livez with --live, at --metrics-addr on this machine")
	fs.BoolVar(&o.live, "live", false, "request /livez, which only shows that the process runs")

	return p.withArgs(0, 0, &ffcli.Command{
		Name: "healthcheck", ShortUsage: "healthcheck [--live] [--url URL]", FlagSet: fs,
		ShortHelp: "request the health of a running relay; for container health checks",
	}, func(ctx context.Context, _ []string) error {
		return p.checkHealth(ctx, &o)
	})
}

func (p *program) checkHealth(ctx context.Context, o *healthcheckOptions) error {
	ctx, cancel := context.WithTimeout(ctx, healthcheckTimeout)
	defer cancel()
	req, transport, err := p.healthRequest(ctx, o)
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
	fmt.Fprintln(p.stdout, "ok")
	return nil
}

// healthRequest returns the request that o describes. Only the relay of this machine is
// sent the token.
func (p *program) healthRequest(ctx context.Context, o *healthcheckOptions) (*http.Request, *http.Transport, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	e := p.common.metrics
	url := o.url
	if url == "" {
		var err error
		if url, err = localURL(&e, o.live); err != nil {
			return nil, nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil || o.url != "" {
		return req, transport, err
	}
	if e.TokenFile != "" {
		token, err := observe.ReadToken(e.TokenFile)
		if err != nil {
			return nil, nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if e.TLSCert != "" {
		transport.TLSClientConfig, err = trustOnly(e.TLSCert)
	}
	return req, transport, err
}

// trustOnly returns a configuration that accepts the certificate in a file alone,
// whatever its names are.
func trustOnly(name string) (*tls.Config, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("--metrics-tls-cert: %w", err)
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, fmt.Errorf("--metrics-tls-cert: %s is not PEM", name)
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

func localURL(e *observe.Endpoint, live bool) (string, error) {
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
