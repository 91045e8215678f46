package relaycmd

import (
	"strings"
	"testing"
)

// TestUnverifiedPostgresIsReported: 0.0.0.0 is this machine, but by its name it is another
// one. Such a server is verified, or log and check report that it is not.
func TestUnverifiedPostgresIsReported(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "p", "")
	elsewhere, _, _ := strings.Cut(strings.ReplaceAll(w.url, "127.0.0.1", "0.0.0.0"), "?")

	_, stderr, code := runBinary(t, nil, "check", "--postgres-url", elsewhere)
	for _, want := range []string{"server refused TLS connection", "sslrootcert=", "sslmode="} {
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("check of a server without TLS = %d %s; want 1 and %q", code, stderr, want)
		}
	}

	weak := elsewhere + "?sslmode=disable"
	problem := "the connection to 0.0.0.0 may be unencrypted, and its server is not verified"
	stdout, stderr, code := runBinary(t, nil, "check", "--postgres-url", weak)
	if code != 0 || !strings.Contains(stdout, "WARNING: "+problem) {
		t.Errorf("check = %d %s%s; want a warning", code, stdout, stderr)
	}
	if stdout, _, _ := runBinary(t, nil, "check", "--postgres-url", w.url); strings.Contains(stdout, "may be unencrypted") {
		t.Errorf("check on this machine prints %s; want no warning", stdout)
	}

	p := startRelay(t, weak, "--data-postgres-url", weak)
	eventually(t, "log lines of both URLs", patience, func() bool {
		return strings.Count(p.log.String(), `msg="PostgreSQL server is not verified"`) == 2
	})
	w.insert(t, 1, 3)
	eventually(t, "delivery", patience, count(w.spool("p"))(3))
}
