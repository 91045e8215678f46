package pginboxrelay

import (
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	base := func(change func(*sinkConfig)) sinkConfig {
		c := sinkDefaults()
		c.URL, c.Table = "postgres://h/d", "in"
		change(&c)
		return c
	}
	for name, tc := range map[string]struct {
		raw     string
		want    sinkConfig
		wantErr string
	}{
		"defaults":       {raw: `{"url":"postgres://h/d","table":"in"}`, want: base(func(*sinkConfig) {})},
		"aliases":        {raw: `{"url":"postgres://h/d","inbox_table":"in","inbox_schema":"app"}`, want: base(func(c *sinkConfig) { c.Schema = "app" })},
		"inbox":          {raw: `{"url":"postgres://h/d","inbox":"in"}`, want: base(func(*sinkConfig) {})},
		"columns":        {raw: `{"url":"postgres://h/d","table":"in","id_column":"id","trace_id_column":"-"}`, want: base(func(c *sinkConfig) { c.ID, c.TraceID = "id", "-" })},
		"pool":           {raw: `{"url":"postgres://h/d","table":"in","max_connections":5,"confirm_timeout":"2s"}`, want: base(func(c *sinkConfig) { c.MaxConnections, c.ConfirmTimeout = 5, relaycfg.Duration(2*time.Second) })},
		"old key":        {raw: `{"url":"postgres://h/d","table":"in","timeout_ms":50}`, want: base(func(c *sinkConfig) { c.ConfirmTimeout = relaycfg.Duration(50 * time.Millisecond) })},
		"no url":         {raw: `{"table":"in"}`, wantErr: `key "url": is required`},
		"no table":       {raw: `{"url":"postgres://h/d"}`, wantErr: `key "table": is required`},
		"unknown key":    {raw: `{"url":"postgres://h/d","table":"in","id_colum":"x"}`, wantErr: `did you mean "id_column"?`},
		"no connections": {raw: `{"url":"postgres://h/d","table":"in","max_connections":0}`, wantErr: "must be at least 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := sinkDefaults()
			err := relaycfg.Decode([]byte(tc.raw), &got)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("Decode(%s) = %v, want error with %q", tc.raw, err, tc.wantErr)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Fatalf("Decode(%s) = %+v, %v; want %+v", tc.raw, got, err, tc.want)
			}
		})
	}
}

func TestURLIsNotShown(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"postgres://u:hunter2@h:port/d", "host=h password=hunter2 port=x", "mysql://u:hunter2@h/d", "postgres://u:hunter2@h/d?sslmode=maybe"} {
		raw, err := json.Marshal(map[string]string{"url": url, "table": "in"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Backend().Sink.New(t.Context(), relay.Env{}, raw); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Sink.New with a malformed URL = %v, want an error without the password", err)
		}
	}
}

// TestPasswordOfTheProcess: the password of the relay's own database never goes to the
// host of an inbox.
func TestPasswordOfTheProcess(t *testing.T) {
	t.Setenv("PGPASSWORD", "hunter2")
	passfile := filepath.Join(t.TempDir(), "passfile")
	if err := os.WriteFile(passfile, []byte("*:*:*:*:hunter3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGPASSFILE", passfile)
	for url, want := range map[string]string{
		"postgres://u@elsewhere/d":                               "",
		"host=elsewhere user=u dbname=d":                         "",
		"postgres://u@elsewhere/d?":                              "",
		"postgres://u:@elsewhere/d":                              "",
		"host=elsewhere user=u password=''":                      "",
		"postgres://u@elsewhere/d?sslpassword=x":                 "",
		"postgres://u@elsewhere/d?application_name=password%3Dx": "",
		"host=elsewhere user=u application_name='a password=x'":  "",
		"postgres://u@elsewhere/d?passfile=" + passfile:          "hunter3",
		"postgres://u:own@elsewhere/d":                           "own",
		"postgres://u@elsewhere/d?password=own":                  "own",
		"host=elsewhere user=u password=own":                     "own",
		"host=elsewhere user=u password = 'own one'":             "own one",
	} {
		c := sinkDefaults()
		c.URL = relaycfg.Secret(url)
		pc, err := c.pool(relay.Env{Pipeline: "p"})
		if err != nil || pc.ConnConfig.Password != want {
			t.Errorf("the password for %s is %q, %v; want %q", url, pc.ConnConfig.Password, err, want)
		}
	}
}

// TestFilesOutside: files that the operator does not permit are not read for an inbox. The
// passwords of one would go to the host that the pipeline names.
func TestFilesOutside(t *testing.T) {
	t.Parallel()
	passfile, dir := filepath.Join(t.TempDir(), "passfile"), t.TempDir()
	if err := os.WriteFile(passfile, []byte("*:*:*:*:hunter3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	access, err := relaycfg.NewAccess("", dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{
		"postgres://u@elsewhere/d?passfile=" + passfile, "host=elsewhere user=u passfile='" + passfile + "'",
		"postgres://u@elsewhere/d?sslmode=require&sslrootcert=" + passfile,
	} {
		c := sinkDefaults()
		c.URL = relaycfg.Secret(url)
		if _, err := c.pool(relay.Env{Pipeline: "p", ReadFile: access.ReadFile}); err == nil || !strings.Contains(err.Error(), "--allow-files") {
			t.Errorf("pool for %s = %v, want an error that names the flag", url, err)
		}
	}
}

// TestVerification: the server of an inbox on another machine proves its name.
func TestVerification(t *testing.T) {
	t.Setenv("PGSSLMODE", "")
	c := sinkDefaults()
	c.URL = "postgres://u:p@elsewhere/d"
	pc, err := c.pool(relay.Env{Pipeline: "p"})
	if err != nil {
		t.Fatal(err)
	}
	tls := pc.ConnConfig.TLSConfig
	if tls == nil || tls.InsecureSkipVerify || tls.ServerName != "elsewhere" || len(pc.ConnConfig.Fallbacks) > 0 {
		t.Errorf("TLS %+v with %d fallbacks, want one verified connection", tls, len(pc.ConnConfig.Fallbacks))
	}
}

// TestWrongPeer: a server that announces a huge message costs no memory.
func TestWrongPeer(t *testing.T) {
	t.Parallel()
	address := relaytest.Serve(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1024))
		_, _ = io.WriteString(conn, "R\x3f\xff\xff\xff and nothing more")
	})
	c := sinkDefaults()
	c.URL, c.Table = relaycfg.Secret("postgres://u@"+address+"/d?sslmode=disable"), "in"
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	sink, err := newSink(t.Context(), relay.Env{Pipeline: "p", Logger: slog.New(slog.DiscardHandler)}, c)
	runtime.ReadMemStats(&after)
	if err == nil {
		_ = sink.Close()
		t.Fatal("newSink at a server that is no PostgreSQL succeeds")
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("%d bytes were allocated", n)
	}
}

func TestPoolSettings(t *testing.T) {
	t.Parallel()
	c := sinkDefaults()
	c.URL = "postgres://h/d"
	pc, err := c.pool(relay.Env{Pipeline: "p"})
	if err != nil {
		t.Fatalf("pool() = %v", err)
	}
	if pc.MaxConns != 2 || pc.ConnConfig.ConnectTimeout != connectTimeout || pc.ConnConfig.RuntimeParams["application_name"] != "pgtrickle-relay p" {
		t.Errorf("pool() = %d connections, connect timeout %s, application %q", pc.MaxConns, pc.ConnConfig.ConnectTimeout, pc.ConnConfig.RuntimeParams["application_name"])
	}
	c.URL = "postgres://h/d?application_name=mine&connect_timeout=3"
	pc, err = c.pool(relay.Env{Pipeline: "p"})
	if err != nil {
		t.Fatalf("pool() = %v", err)
	}
	if pc.ConnConfig.ConnectTimeout != 3*time.Second || pc.ConnConfig.RuntimeParams["application_name"] != "mine" {
		t.Errorf("pool() does not leave what the URL says: %s, %q", pc.ConnConfig.ConnectTimeout, pc.ConnConfig.RuntimeParams["application_name"])
	}
}

func TestEveryKeyHasDoc(t *testing.T) {
	t.Parallel()
	for _, k := range relaycfg.Keys(sinkDefaults()) {
		if k.Doc == "" {
			t.Errorf("key %q has no doc", k.Name)
		}
	}
}
