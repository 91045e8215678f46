package relaycmd

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// An operator sees why the relay cannot connect to the database.
func TestRefusedConnections(t *testing.T) {
	t.Parallel()
	server := passwordServer(t)
	w := newWorld(t)
	noDatabase, err := url.Parse(w.url)
	if err != nil {
		t.Fatal(err)
	}
	noDatabase.Path = "/no_such_database"
	for name, c := range map[string]struct {
		url  string
		want []string
	}{
		"wrong password": {
			fmt.Sprintf("postgres://postgres:hunter2@%s/postgres", server),
			[]string{"connect to PostgreSQL", `password authentication failed for user "postgres" (SQLSTATE 28P01)`, "check user and password in --postgres-url, and the server's pg_hba.conf"},
		},
		"no such role": {
			fmt.Sprintf("postgres://nobody:hunter2@%s/postgres", server),
			[]string{`password authentication failed for user "nobody" (SQLSTATE 28P01)`, "check user and password in --postgres-url"},
		},
		"no such database": {
			noDatabase.String(),
			[]string{`database "no_such_database" does not exist (SQLSTATE 3D000)`, "check the database's name in --postgres-url"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, stderr, code := runBinary(t, nil, "check", "--postgres-url", c.url)
			for _, want := range c.want {
				if code != 1 || !strings.Contains(stderr, want) {
					t.Errorf("check = %d %s; want 1 and %q", code, stderr, want)
				}
			}
			p := startRelay(t, c.url)
			var body string
			eventually(t, "unhealthy", patience, func() bool { code, body = p.get("/health"); return code == 503 && strings.Contains(body, "SQLSTATE") })
			for _, want := range c.want {
				if want = strings.ReplaceAll(want, `"`, `\"`); !strings.Contains(body, want) {
					t.Errorf("/health says %s; want %q", body, want)
				}
			}
			time.Sleep(2 * time.Second) // some retries, which must not be logged
			if n := strings.Count(p.log.String(), "database not ready"); n != 1 {
				t.Errorf("logged %d times, want once", n)
			}
			if strings.Contains(p.log.String()+body+stderr, "hunter2") {
				t.Errorf("the password is shown")
			}
		})
	}
}

// TestAddressInUse: an address that a draining relay holds is explained.
func TestAddressInUse(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, stderr, code := runBinary(t, nil, "--postgres-url", "postgres://127.0.0.1:1/x", "--metrics-addr", listener.Addr().String())
	if want := "address already in use; a relay keeps it until it has drained: wait for its end, or give another address"; code != 1 ||
		!strings.Contains(stderr, want) {
		t.Errorf("relay = %d %s, want %q", code, stderr, want)
	}
}

// passwordServer runs a PostgreSQL that asks for a password, and returns its
// host and port.
func passwordServer(t *testing.T) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if path, err := exec.LookPath("initdb"); err == nil {
		found = append(found, path)
	}
	if len(found) == 0 {
		if os.Getenv("RELAY_TEST_REQUIRE") != "" {
			t.Fatal("no initdb in /usr/lib/postgresql/*/bin or PATH, and RELAY_TEST_REQUIRE asks for every server")
		}
		t.Skip("no initdb in /usr/lib/postgresql/*/bin or PATH: no server that asks for a password")
	}
	bin := filepath.Dir(found[len(found)-1])
	dir, err := os.MkdirTemp("", "relay-pg-*") // other users may not enter the parent of t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "password"), []byte("right\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	attributes := asOther(t, dir)
	data := filepath.Join(dir, "data")
	initdb := exec.CommandContext(t.Context(), filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "-A", "scram-sha-256", "--pwfile", filepath.Join(dir, "password"), "--no-sync", "--locale=C")
	initdb.Dir, initdb.SysProcAttr = dir, attributes
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-p", port, "-h", "127.0.0.1", "-k", dir, "-c", "fsync=off", "-c", "shared_buffers=8MB")
	server.Dir, server.SysProcAttr = dir, attributes
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGINT) // a fast shutdown
		_ = server.Wait()
	})
	eventually(t, "PostgreSQL with a password", patience, func() bool {
		_, stderr, code := runBinary(t, nil, "migrate", "--postgres-url", "postgres://postgres:right@"+addr+"/postgres")
		return code == 0 || strings.Contains(stderr, "password")
	})
	return addr
}

// asOther lets root start PostgreSQL, which does not run as root, as another user.
func asOther(t *testing.T, dir string) *syscall.SysProcAttr {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			t.Fatal(err)
		}
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}

// The database refuses an invalid pipeline before any relay sees it.
func TestRefusedPipelines(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, c := range map[string]struct{ config, want string }{
		"unknown key":     {`{"stream_table":"public.orders","sink_type":"spool","spool_pth":"x"}`, `relay.invalid_config: key "spool_pth": unknown key; did you mean "spool_path"?`},
		"wrong type":      {`{"stream_table":"public.orders","sink_type":"spool","spool_path":["x"]}`, `relay.invalid_config: key "spool_path": wants string, not a list`},
		"missing key":     {`{"stream_table":"public.orders","sink_type":"spool"}`, `relay.invalid_config: key "spool_path": is required`},
		"unknown backend": {`{"stream_table":"public.orders","sink_type":"spol"}`, `did you mean "spool"?`},
	} {
		_, err := w.pool.Exec(t.Context(), `SELECT pgtrickle.set_relay_outbox('p', config => $1::text::jsonb)`, c.config)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}
