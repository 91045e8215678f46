package relaynet_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

// parsePostgres returns the verified configuration of a connection string.
func parsePostgres(t *testing.T, text string) *pgconn.Config {
	t.Helper()
	config, err := pgconn.ParseConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	relaynet.VerifyPostgres(config, text)
	return config
}

func TestVerifyPostgres(t *testing.T) {
	ca := tlstest.New(t).File
	service := filepath.Join(t.TempDir(), "service")
	if err := os.WriteFile(service, []byte("[weak]\nhost=db\nsslmode=require\n[silent]\nhost=db\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	for text, want := range map[string]string{ // a part of the warning; "" is none
		"postgres://u:p@db/d":                                    "",
		"postgres://u:p@db,other:5433/d":                         "",
		"host=db user=u":                                         "",
		"postgres://u:p@db/d?sslrootcert=" + ca:                  "",
		"postgres://u:p@db/d?application_name=sslmode%3Ddisable": "",
		"host=db application_name='x sslmode=disable'":           "",
		"postgres://u:p@db/d?sslnegotiation=direct":              "",
		"postgres://u:p@db/d?sslmode=verify-full":                "",
		"service=silent servicefile=" + service:                  "",
		"postgres://u:p@localhost/d":                             "",
		"postgres://u:p@127.0.0.2/d?sslmode=disable":             "",
		"postgres://u:p@[::1]/d":                                 "",
		"host=/run/postgresql user=u":                            "",
		"postgres://u:p@localhost,db/d":                          "",
		"postgres://u:p@db,localhost/d":                          "",
		"postgres://u:p@db/d?sslmode=disable":                    "connection to db may be unencrypted",
		"postgres://u:p@db/d?sslmode=prefer":                     "connection to db may be unencrypted",
		"postgres://u:p@localhost,db/d?sslmode=disable":          "connection to db may be unencrypted",
		"postgres://u:p@db/d?sslmode=require":                    "certificate of db is not verified",
		"postgres://u:p@db/d?ssl=true":                           "certificate of db is not verified",
		"host=db user=u sslmode = require":                       "certificate of db is not verified",
		"postgres://u:p@db/d?sslmode=verify-ca":                  "another host's name",
		"service=weak servicefile=" + service:                    "certificate of db is not verified",
	} {
		got := relaynet.UnverifiedPostgres(parsePostgres(t, text))
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: warning %q, want %q", text, got, want)
		}
	}

	t.Setenv("PGSSLMODE", "require")
	if got := relaynet.UnverifiedPostgres(parsePostgres(t, "postgres://u:p@db/d")); !strings.Contains(got, "not verified") {
		t.Errorf("PGSSLMODE=require: warning %q", got)
	}
}

// TestPostgresGetsNoPassword: a server that proves no name gets no password, and the
// error names the cure. It is not on a local address by the client's view.
func TestPostgresGetsNoPassword(t *testing.T) {
	authority := tlstest.New(t)
	pair, err := tls.LoadX509KeyPair(authority.Issue(t, "server"))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		url, answer, cure string
	}{
		"no TLS":            {"postgres://u:SECRET@db/d", "N", "sslmode=disable"},
		"unknown authority": {"postgres://u:SECRET@db/d", "S", "sslrootcert=FILE"},
		"another name":      {"postgres://u:SECRET@db/d?sslrootcert=" + authority.File, "S", "sslrootcert=FILE"},
		"its own name":      {"postgres://u:SECRET@127.0.0.1/d?sslmode=verify-full&sslrootcert=" + authority.File, "S", ""},
	} {
		t.Run(name, func(t *testing.T) {
			ln := listen(t)
			received := make(chan string, 1)
			go func() {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				_, _ = io.ReadFull(conn, make([]byte, 8)) // SSLRequest
				_, _ = io.WriteString(conn, tc.answer)
				if tc.answer == "S" {
					conn = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}})
				}
				buf := make([]byte, 1024)
				n, _ := conn.Read(buf)
				received <- string(buf[:n])
			}()

			config := parsePostgres(t, tc.url)
			config.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
			config.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
			}
			_, err := pgconn.ConnectConfig(t.Context(), config)
			ln.Close()
			if err == nil {
				t.Fatal("connected to a server that answers nothing")
			}
			if cure := relaynet.PostgresTLSCure(err); !strings.Contains(cure, tc.cure) || tc.cure == "" && cure != "" {
				t.Errorf("cure %q of %v, want %q", cure, err, tc.cure)
			}
			if sent := <-received; (sent != "") != (tc.cure == "") {
				t.Errorf("the server received %q", sent)
			}
		})
	}
	if cure := relaynet.PostgresTLSCure(errors.New("EOF")); cure != "" {
		t.Errorf("cure %q of another error", cure)
	}
}

func TestPostgresKeys(t *testing.T) {
	for text, want := range map[string][]string{
		"":                                     {},
		"postgres://u:p@h:1/d?sslmode=require": {"database", "host", "password", "port", "sslmode", "user"},
		"host=h application_name='connection string key \"password\" is not in ConnStringAllowedKeys'": {"application_name", "host"},
		"postgres://h/d?sslrootcert=/nowhere&work_mem=1MB":                                             {"database", "host", "sslrootcert", "work_mem"},
	} {
		got := relaynet.PostgresKeys(text)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("PostgresKeys(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestPostgresFiles(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"postgres://u:p@h/d": "",
		"postgres://h/d?sslrootcert=/a&sslcert=/b&sslkey=/c&sslmode=x":   "/a /b /c",
		"postgresql://h/d?pass%66ile=/a&sslrootcert=system":              "/a",
		"postgres://h/d?servicefile=/a&servicefile=/b":                   "/a /b",
		"host=h sslrootcert = '/a' sslkey=/b password=x":                 "/a /b",
		"host='h'passfile=/a":                                            "/a",
		"host=h application_name='x sslkey=/a' sslrootcert=system":       "/a",
		"passfile=/a host=h sslmode=verify-full sslcert='' servicefile=": "/a",
	} {
		got := relaynet.PostgresFiles(text)
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("PostgresFiles(%q) = %q, want %s", text, got, want)
		}
	}
}
