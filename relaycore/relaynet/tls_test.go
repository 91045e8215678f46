package relaynet_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

func TestTLS(t *testing.T) {
	ca := tlstest.New(t)
	cert, key := ca.Issue(t, "relay")
	_, otherKey := ca.Issue(t, "other")
	text := func(file string) string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	missing := filepath.Join(t.TempDir(), "hidden")
	for name, tc := range map[string]struct {
		ca, cert, key string
		wantErr       string
	}{
		"nothing":                {},
		"files":                  {ca: ca.File, cert: cert, key: key},
		"text":                   {ca: text(ca.File), cert: text(cert), key: text(key)},
		"no authority":           {ca: missing, wantErr: `: open the file: no such file`},
		"a key for an authority": {ca: key, wantErr: `: holds no PEM certificate`},
		"no certificate":         {cert: missing, key: key, wantErr: `key "tls_cert": open the file: no such file`},
		"no key":                 {cert: cert, key: missing, wantErr: `key "tls_key": open the file: no such file`},
		"another key":            {cert: cert, key: otherKey, wantErr: `key "tls_cert": cannot be used with tls_key`},
	} {
		t.Run(name, func(t *testing.T) {
			client, clientErr := relaynet.TLS{CA: tc.ca, Cert: tc.cert, Key: relaycfg.Secret(tc.key)}.Client(os.ReadFile)
			own := relaynet.ServerTLS{Cert: tc.cert, Key: relaycfg.Secret(tc.key), ClientCA: tc.ca}
			if own.Cert == "" {
				own.Cert, own.Key = cert, relaycfg.Secret(key)
			}
			server, serverErr := own.Server(os.ReadFile)
			for _, err := range []error{clientErr, serverErr} {
				if tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr) || strings.Contains(err.Error(), "hidden")) {
					t.Errorf("error = %v, want one with %s and without the path", err, tc.wantErr)
				}
				if tc.wantErr == "" && err != nil {
					t.Error(err)
				}
			}
			if tc.wantErr != "" {
				return
			}
			if (client.RootCAs != nil) != (tc.ca != "") || (len(client.Certificates) == 1) != (tc.cert != "") {
				t.Errorf("Client = %+v", client)
			}
			if (server.ClientCAs != nil) != (tc.ca != "") || (server.ClientAuth == tls.RequireAndVerifyClientCert) != (tc.ca != "") || len(server.Certificates) != 1 {
				t.Errorf("Server = %+v", server)
			}
		})
	}
}

func TestTLSValidate(t *testing.T) {
	t.Parallel()
	const cert, key = `key "tls_cert": needs tls_key`, `key "tls_key": needs tls_cert`
	for name, tc := range map[string]struct {
		cfg       any
		raw, want string
	}{
		"client, nothing":        {&relaynet.TLS{}, `{}`, ""},
		"client, both":           {&relaynet.TLS{}, `{"tls_cert":"c","tls_key":"k"}`, ""},
		"client, no key":         {&relaynet.TLS{}, `{"tls_cert":"c"}`, cert},
		"client, no certificate": {&relaynet.TLS{}, `{"tls_key":"k"}`, key},
		"server, nothing":        {&relaynet.ServerTLS{}, `{}`, ""},
		"server, all":            {&relaynet.ServerTLS{}, `{"tls_cert":"c","tls_key":"k","client_ca":"a"}`, ""},
		"server, no key":         {&relaynet.ServerTLS{}, `{"tls_cert":"c"}`, cert},
		"server, authority only": {&relaynet.ServerTLS{}, `{"client_ca":"a"}`, `key "client_ca": needs tls_cert`},
	} {
		if err := relaycfg.Decode([]byte(tc.raw), tc.cfg); (err == nil) != (tc.want == "") || err != nil && !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s: Decode = %v, want %q", name, err, tc.want)
		}
	}
	if (relaynet.TLS{}).Configured() || !(relaynet.TLS{ServerName: "x"}).Configured() {
		t.Error("Configured is wrong")
	}
	if cfg, err := (relaynet.ServerTLS{}).Server(os.ReadFile); cfg != nil || err != nil {
		t.Errorf("Server() = %v, %v without a certificate, want nil, nil", cfg, err)
	}
}

func ExampleTLS() {
	var config struct {
		URL string `json:"url" doc:"Server."`
		relaynet.TLS
	}
	err := relaycfg.Decode([]byte(`{"url":"tls://broker:4222","tls_cert":"client.pem"}`), &config)
	fmt.Println(err)
	// Output: key "tls_cert": needs tls_key: set both or none
}

// TestFilesOutside: a file that the operator does not permit is not read, and no link leads to
// it. A FIFO does not block.
func TestFilesOutside(t *testing.T) {
	ca := tlstest.New(t)
	dir := t.TempDir()
	access, err := relaycfg.NewAccess("", dir)
	if err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(dir, "ca.pem")
	text, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(os.WriteFile(inside, text, 0o600), os.Symlink(ca.File, filepath.Join(dir, "out")),
		os.Symlink("ca.pem", filepath.Join(dir, "in")), syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	for path, permitted := range map[string]bool{
		inside: true, filepath.Join(dir, "in"): true, ca.File: false, filepath.Join(dir, "out"): false, filepath.Join(dir, "fifo"): false,
	} {
		if _, err := (relaynet.TLS{CA: path}).Client(access.ReadFile); (err == nil) != permitted {
			t.Errorf("Client with %s = %v", path, err)
		}
	}
}
