package relaycmd

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// commonOptions are the options that every command has.
type commonOptions struct {
	postgresURL  string
	dataURL      string
	group        string
	logFormat    string
	logLevel     string
	configFile   string
	output       string
	metrics      observe.Endpoint
	allowEnv     string
	allowFiles   string
	allowPrivate string
	access       *relaycfg.Access // of the three
}

// flagSet returns the flags that every command has, for a command to add its own.
func (p *program) flagSet() *flag.FlagSet {
	o := &p.common
	fs := flag.NewFlagSet(p.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // parse prints errors and help

	fs.StringVar(&o.postgresURL, "postgres-url", "", "`URL` of the database; ${env:NAME} and ${file:/path} are replaced")
	fs.StringVar(&o.dataURL, "data-postgres-url", "", "`URL` with the login that writes inboxes; --postgres-url by default")
	fs.StringVar(&o.group, "relay-group-id", "default", "`name` of the group of processes that share pipelines and checkpoints")
	fs.StringVar(&o.logFormat, "log-format", "text", "`text|json`; logs go to standard error")
	fs.StringVar(&o.logLevel, "log-level", "info", "`debug|info|warn|error`")
	fs.StringVar(&o.configFile, "config", "", "`file` with settings, one \"key = value\" a line; keys are names of flags")
	fs.StringVar(&o.output, "output", "text", "`text|json`; format of what a command prints")
	fs.StringVar(&o.metrics.Addr, "metrics-addr", "0.0.0.0:9090", "`host:port` of /health, /livez, /readyz, /metrics and the status page")
	fs.StringVar(&o.metrics.TokenFile, "metrics-token-file", "",
		"`file` with the token that metrics and details require; without it, details are for requests from this machine")
	fs.StringVar(&o.metrics.TLSCert, "metrics-tls-cert", "", "PEM `file` with the certificate of --metrics-addr, which then speaks TLS")
	fs.StringVar(&o.metrics.TLSKey, "metrics-tls-key", "", "PEM `file` with the key of --metrics-tls-cert")
	fs.StringVar(&o.allowEnv, "allow-env", "PGTRICKLE_SECRET_*",
		"`names` or prefixes* of variables that pipelines may refer to, separated by commas")
	fs.StringVar(&o.allowFiles, "allow-files", "/run/secrets", "`directories` of files that pipelines may name, separated by commas")
	fs.StringVar(&o.allowPrivate, "allow-private", "",
		"`networks` that pipelines may reach, of those that are not public, separated by commas, or none")
	return fs
}

func (o *commonOptions) validate() error {
	for _, c := range []struct {
		flag, value string
		valid       []string
	}{
		{"log-format", o.logFormat, []string{"text", "json"}},
		{"log-level", o.logLevel, []string{"debug", "info", "warn", "error"}},
		{"output", o.output, []string{"text", "json"}},
	} {
		if !slices.Contains(c.valid, c.value) {
			return fmt.Errorf("--%s is %q; must be one of %s", c.flag, c.value, strings.Join(c.valid, ", "))
		}
	}
	if o.group == "" {
		return errors.New("--relay-group-id must not be empty")
	}

	if (o.metrics.TLSCert == "") != (o.metrics.TLSKey == "") {
		return errors.New("--metrics-tls-cert and --metrics-tls-key need each other; set both or none")
	}

	for _, f := range []struct {
		name string
		url  *string
	}{{"postgres-url", &o.postgresURL}, {"data-postgres-url", &o.dataURL}} {
		expanded, err := relaycfg.ExpandString(*f.url)
		if err != nil {
			return fmt.Errorf("--%s: %w", f.name, err)
		}
		*f.url = expanded
	}

	var err error
	if o.access, err = relaycfg.NewAccess(o.allowEnv, o.allowFiles); err != nil {
		return fmt.Errorf("--allow-files: %w", err)
	}
	if o.access.Control, err = relaynet.Networks(o.allowPrivate); err != nil {
		return fmt.Errorf("--allow-private: %w", err)
	}
	return nil
}

func (p *program) json() bool { return p.common.output == "json" }

// logger returns the logger of the process. Client libraries log through it, too.
func (p *program) logger() *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(p.common.logLevel)) // validated
	opts := &slog.HandlerOptions{Level: level}

	log := slog.New(slog.NewTextHandler(p.stderr, opts))
	if p.common.logFormat == "json" {
		log = slog.New(slog.NewJSONHandler(p.stderr, opts))
	}
	slog.SetDefault(log)
	return log
}
