package relaynet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// VerifyPostgres makes config, which pgx parsed from text, verify the server's
// certificate and name, as sslmode=verify-full does. pgx's own default sends the password
// to any server. An sslmode in text, in the process's environment or in a service file
// stays, and so do connections that do not leave the machine.
func VerifyPostgres(config *pgconn.Config, text string) {
	keys := PostgresKeys(text)
	if slices.Contains(keys, "sslmode") || slices.Contains(keys, "ssl") || os.Getenv("PGSSLMODE") != "" {
		return
	}

	// pgx expands its default to an unverified TLS connection and a plain one, per host.
	encrypted := func(f *pgconn.FallbackConfig) bool { return f.TLSConfig != nil }
	if config.TLSConfig == nil && !slices.ContainsFunc(config.Fallbacks, encrypted) {
		return // a service file has sslmode=disable
	}
	plain := func(f *pgconn.FallbackConfig) bool { return !encrypted(f) }
	if (slices.Contains(keys, "service") || os.Getenv("PGSERVICE") != "") && !slices.ContainsFunc(config.Fallbacks, plain) {
		return // a service file has another sslmode than pgx's default
	}
	config.Fallbacks = slices.DeleteFunc(config.Fallbacks, func(f *pgconn.FallbackConfig) bool { return plain(f) && !isLocal(f.Host) })
	config.TLSConfig = verified(config.TLSConfig, config.Host)
	for _, f := range config.Fallbacks {
		f.TLSConfig = verified(f.TLSConfig, f.Host)
	}
}

// verified returns a copy of config that verifies host, unless host is local.
func verified(config *tls.Config, host string) *tls.Config {
	if config == nil || isLocal(host) {
		return config
	}
	config = config.Clone()
	config.InsecureSkipVerify, config.ServerName = false, host
	return config
}

// isLocal reports whether a connection to host does not leave the machine.
func isLocal(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || filepath.IsAbs(host) || err == nil && addr.IsLoopback()
}

// UnverifiedPostgres describes the weakest connection that config allows to another
// machine, for logs. It is empty if every server is verified in full.
func UnverifiedPostgres(config *pgconn.Config) string {
	weakest, text := 0, ""
	for _, f := range append([]*pgconn.FallbackConfig{{Host: config.Host, TLSConfig: config.TLSConfig}}, config.Fallbacks...) {
		rank, what := 0, ""
		switch {
		case isLocal(f.Host):
		case f.TLSConfig == nil:
			rank, what = 3, "the connection to %s may be unencrypted, and its server is not verified"
		case !f.TLSConfig.InsecureSkipVerify:
		case f.TLSConfig.VerifyPeerCertificate == nil:
			rank, what = 2, "the certificate of %s is not verified"
		default:
			rank, what = 1, "the certificate of %s may have another host's name"
		}
		if rank > weakest {
			weakest, text = rank, fmt.Sprintf(what, f.Host)
		}
	}
	return text
}

// PostgresCause returns the error of a connection to PostgreSQL on one line, without
// attempts that hide its cause. With sslmode=prefer each server is tried with TLS first:
// that it has no TLS is not the cause if it then answers without.
func PostgresCause(err error) error {
	failed, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok {
		return err
	}
	attempts := []error{failed.Unwrap()}
	if joined, ok := failed.Unwrap().(interface{ Unwrap() []error }); ok {
		attempts = joined.Unwrap()
	}
	_, answered := errors.AsType[*pgconn.PgError](err)
	var causes []string
	for _, a := range attempts {
		text := a.Error()
		if hides := answered && strings.Contains(text, refusedTLS); !hides && !slices.Contains(causes, text) {
			causes = append(causes, text)
		}
	}
	text := fmt.Sprintf("user=%s database=%s: %s", failed.Config.User, failed.Config.Database, strings.Join(causes, "; "))
	text = strings.Replace(err.Error(), failed.Error(), text, 1)
	return &causeError{strings.ReplaceAll(text, "\n", "; "), err} // a server's own text may have several lines
}

// refusedTLS is pgx's error for a server without TLS.
const refusedTLS = "server refused TLS connection"

type causeError struct {
	text string
	err  error
}

func (e *causeError) Error() string { return e.text }
func (e *causeError) Unwrap() error { return e.err }

// PostgresTLSCure returns what to set if err means that a server of PostgreSQL is not
// verified, and "" otherwise.
func PostgresTLSCure(err error) string {
	_, answered := errors.AsType[*pgconn.PgError](err) // over another connection than the refused one
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case err == nil || answered:
		return ""
	case strings.Contains(err.Error(), refusedTLS):
		return "enable TLS in the server and write sslrootcert=FILE into the URL, or sslmode=disable if the network is trusted"
	case untrusted || isCertificateError(err):
		return "write sslrootcert=FILE with the authority of the server's certificate into the URL, " +
			"or a weaker sslmode= such as verify-ca or require"
	}
	return ""
}

func isCertificateError(err error) bool {
	_, authority := errors.AsType[x509.UnknownAuthorityError](err)
	_, name := errors.AsType[x509.HostnameError](err)
	_, invalid := errors.AsType[x509.CertificateInvalidError](err)
	return authority || name || invalid
}

// refusedKey is the end of pgx's error for a key that is not allowed. What is before
// quotes the connection string, which may contain anything.
var refusedKey = regexp.MustCompile(`: connection string key "(\w+)" is not in ConnStringAllowedKeys$`)

// maxPostgresKeys bounds the keys of a connection string.
const maxPostgresKeys = 100

// PostgresKeys returns the keys that a connection string sets, as pgx reads it: it reports
// them one by one as not allowed. No file that the string names is opened unless all of
// its keys are returned. It is nil if pgx cannot parse the string.
func PostgresKeys(text string) []string {
	keys := []string{}
	for range maxPostgresKeys {
		_, err := pgconn.ParseConfigWithOptions(text, pgconn.ParseConfigOptions{ConnStringAllowedKeys: keys})
		if err == nil {
			return keys
		}
		match := refusedKey.FindStringSubmatch(err.Error())
		if match == nil {
			return keys // the caller's own parsing reports err
		}
		keys = append(keys, match[1])
	}
	return keys
}

// postgresFile finds the files that a keyword/value string names. It may find one in the
// value of another key, and misses none.
var postgresFile = regexp.MustCompile(`(passfile|servicefile|sslcert|sslkey|sslrootcert)\s*=\s*('(?:[^'\\]|\\.)*'|\S*)`)

// PostgresFiles returns the files that a connection string names, in no order.
func PostgresFiles(text string) (files []string) {
	add := func(key, file string) {
		if file != "" && (key != "sslrootcert" || file != "system") {
			files = append(files, file)
		}
	}
	if u, err := url.Parse(text); err == nil && strings.HasPrefix(text, "postgres") {
		for key, values := range u.Query() {
			for _, file := range values {
				if postgresFile.MatchString(key + "=") {
					add(key, file)
				}
			}
		}
		return files
	}
	for _, match := range postgresFile.FindAllStringSubmatch(text, -1) {
		add(match[1], strings.Trim(match[2], "'"))
	}
	return files
}

// RecognisePostgres returns a hook of pgx that refuses a server that is no PostgreSQL.
// key names the address, and tlsKey what asks for TLS. A TLS connection stays as it is:
// pgx binds the login to its certificate, for which it must see the connection itself.
func RecognisePostgres(key, tlsKey string) func(context.Context, *pgconn.Config, net.Conn) (net.Conn, error) {
	peer := Peer{Key: key, Name: "PostgreSQL server", TLS: tlsKey}
	return func(_ context.Context, _ *pgconn.Config, conn net.Conn) (net.Conn, error) {
		if _, ok := conn.(*tls.Conn); ok {
			return conn, nil
		}
		return Guard(conn, peer, peer.Begins("RENv")), nil
	}
}
