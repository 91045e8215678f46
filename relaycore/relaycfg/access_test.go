package relaycfg_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

func TestAccessOfVariables(t *testing.T) {
	for _, name := range []string{
		"PGTRICKLE_SECRET_A", "PGTRICKLE_RELAY_POSTGRES_URL", "PGPASSWORD", "ACCESS_OTHER", "ACCESS_ONE", "ACCESS_ONE_MORE",
	} {
		t.Setenv(name, "value of "+name)
	}
	for _, tc := range []struct{ allow, name, problem string }{
		{"PGTRICKLE_SECRET_*", "PGTRICKLE_SECRET_A", ""},
		{"PGTRICKLE_SECRET_*", "ACCESS_OTHER", "--allow-env ACCESS_OTHER"},
		{"PGTRICKLE_SECRET_*, ACCESS_ONE", "ACCESS_ONE", ""},
		{"ACCESS_ONE", "ACCESS_ONE_MORE", "--allow-env ACCESS_ONE_MORE"},
		{"", "PGTRICKLE_SECRET_A", "--allow-env"},
		{"*", "ACCESS_OTHER", ""},
		{"*", "PGTRICKLE_RELAY_POSTGRES_URL", "belongs to the relay"},
		{"*,PGPASSWORD", "PGPASSWORD", "belongs to the relay"},
	} {
		a, err := relaycfg.NewAccess(tc.allow, "")
		if err != nil {
			t.Fatal(err)
		}
		got, err := a.Expand([]byte(`{"key":"${env:` + tc.name + `}"}`))
		switch {
		case tc.problem == "" && (err != nil || !strings.Contains(string(got), "value of "+tc.name)):
			t.Errorf("with %q, %s = %s, %v; want its value", tc.allow, tc.name, got, err)
		case tc.problem != "" && (err == nil || !strings.Contains(err.Error(), tc.problem) || strings.Contains(err.Error(), "value of")):
			t.Errorf("with %q, %s = %s, %v; want the error %q", tc.allow, tc.name, got, err, tc.problem)
		}
	}
}

// Links inside a permitted directory work, as Kubernetes makes them. None leads out.
func TestAccessOfFiles(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	in, out := filepath.Join(base, "in"), filepath.Join(base, "out")
	for _, dir := range []string{in, out, filepath.Join(in, "..2026")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{filepath.Join(in, "..2026", "key"), filepath.Join(out, "key"), base + "/in2"} {
		if err := os.WriteFile(file, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"in/..data": "..2026", "in/key": "..data/key", "in/absolute": in + "/key", "in/leads-out": "../out/key", "in/dir": out,
		"in/dangling": "../out/none", "out/leads-in": in + "/key",
	} {
		if err := os.Symlink(target, filepath.Join(base, link)); err != nil {
			t.Fatal(err)
		}
	}
	a, err := relaycfg.NewAccess("", in)
	if err != nil {
		t.Fatal(err)
	}
	keys := relaycfg.Keys(struct {
		Path string `json:"path" relay:"file" doc:"File."`
		Cert string `json:"cert" relay:"pem" doc:"Certificate."`
	}{})

	for path, problem := range map[string]string{
		in + "/key": "", in + "/absolute": "", out + "/leads-in": "",
		in + "/leads-out": "--allow-files", in + "/dir/key": "--allow-files", in + "/dangling": "--allow-files", out + "/key": "--allow-files",
		in + "2": "--allow-files", "/etc/passwd": "--allow-files", "/proc/self/environ": "--allow-files", in + "/dir/../key": `".."`,
	} {
		_, err := a.Expand([]byte(`{"k":"${file:` + path + `}"}`))
		checkErr(t, "reference to "+path, err, problem)
		checkErr(t, "key with "+path, a.CheckFiles(keys, []byte(`{"path":"`+path+`"}`)), problem)
	}
	for raw, problem := range map[string]string{
		`{"path":"` + in + `/new.jsonl"}`: "", `{"path":"` + in + `/none/new"}`: "", `{"path":"` + in + `/dir/new"}`: "--allow-files",
		`{"path":"/dev/stdout"}`: "", `{"path":""}`: "", `{"cert":"-----BEGIN CERTIFICATE-----"}`: "", `{"path":"-----BEGIN X"}`: "--allow-files",
		`{"cert":"/etc/passwd"}`: "--allow-files",
	} {
		checkErr(t, raw, a.CheckFiles(keys, []byte(raw)), problem)
	}
}

func checkErr(t *testing.T, what string, err error, problem string) {
	t.Helper()
	if problem == "" && err != nil || problem != "" && (err == nil || !strings.Contains(err.Error(), problem)) {
		t.Errorf("%s: %v; want the problem %q", what, err, problem)
	}
}
