package relaytls_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytls"
)

func TestClient(t *testing.T) {
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
		"no authority":           {ca: missing, wantErr: `key "tls_ca": open the file: no such file`},
		"a key for an authority": {ca: key, wantErr: `key "tls_ca": holds no PEM certificate`},
		"no certificate":         {cert: missing, key: key, wantErr: `key "tls_cert": open the file: no such file`},
		"no key":                 {cert: cert, key: missing, wantErr: `key "tls_key": open the file: no such file`},
		"another key":            {cert: cert, key: otherKey, wantErr: `key "tls_cert": cannot be used with tls_key`},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := relaytls.Client(tc.ca, tc.cert, tc.key)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) || strings.Contains(err.Error(), "hidden") {
					t.Fatalf("Client = %v, want an error with %s and without the path", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if (cfg.RootCAs != nil) != (tc.ca != "") || (len(cfg.Certificates) == 1) != (tc.cert != "") {
				t.Errorf("Client = %+v", cfg)
			}
		})
	}
}
