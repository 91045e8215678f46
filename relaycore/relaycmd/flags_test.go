package relaycmd

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// parseArgs returns the flags of the daemon.
func parseArgs(t *testing.T, environ []string, args ...string) (func(flag string) string, error) {
	t.Helper()
	reg, err := relay.NewRegistry(spoolBackend())
	if err != nil {
		t.Fatal(err)
	}
	p := &program{name: "test-relay", args: args, environ: environ, registry: reg, stdout: new(bytes.Buffer)}
	root := p.commands()
	err = p.parse(root)
	return func(name string) string { return root.Subcommands[0].FlagSet.Lookup(name).Value.String() }, err
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "relay.conf")
	if err := os.WriteFile(file, []byte("# a comment\npostgres_url = \"postgres://file/db\"\nrelay-group-id: file\nlog_level warn # why not\n\ndrain_timeout='7s'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := []string{"PGTRICKLE_RELAY_GROUP_ID=env", "PGTRICKLE_RELAY_LOG_FORMAT=json", "PGTRICKLE_RELAY_CONFIG=" + file}
	option, err := parseArgs(t, environ, "--log-format", "text", "run")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"postgres-url": "postgres://file/db", "relay-group-id": "env", "log-format": "text", "log-level": "warn", "drain-timeout": "7s",
		"metrics-addr": "0.0.0.0:9090",
	} {
		if got := option(name); got != want {
			t.Errorf("--%s is %q, want %q: a flag overrides the environment, the environment the file, the file the default", name, got, want)
		}
	}
}

func TestFileForms(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"toml": "postgres_url = \"postgres://u:p#1@h/d?x=y\"\nauto_migrate = true\n",
		"yaml": "postgres_url: postgres://u:p#1@h/d?x=y\nauto_migrate: true\n",
		"json": `{"postgres_url": "postgres://u:p#1@h/d?x=y", "auto_migrate": true}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			option, err := parseArgs(t, nil, "--config="+file)
			if err != nil || option("postgres-url") != "postgres://u:p#1@h/d?x=y" || option("auto-migrate") != "true" {
				t.Errorf("parse = %q, %q, %v", option("postgres-url"), option("auto-migrate"), err)
			}
		})
	}
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("postgress_url = x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		environ []string
		args    []string
		want    string
	}{
		"no database":         {nil, nil, "error: --postgres-url is required (or set PGTRICKLE_RELAY_POSTGRES_URL)"},
		"unknown flag":        {nil, []string{"--postgres-ulr", "x"}, "unknown flag --postgres-ulr; did you mean --postgres-url?"},
		"flag of another":     {nil, []string{"status", "--pprof"}, "status: --pprof is a flag of another command"},
		"unknown command":     {nil, []string{"stauts"}, `unknown command "stauts"; did you mean "status"?`},
		"half a command":      {nil, []string{"dlq"}, "usage: test-relay dlq list|summary|retry|discard"},
		"unknown variable":    {[]string{"PGTRICKLE_RELAY_LOG_LEVL=x"}, nil, "unknown environment variable PGTRICKLE_RELAY_LOG_LEVL; did you mean PGTRICKLE_RELAY_LOG_LEVEL?"},
		"bad variable":        {[]string{"PGTRICKLE_RELAY_DRAIN_TIMEOUT=x"}, nil, `PGTRICKLE_RELAY_DRAIN_TIMEOUT="x": parse error`},
		"unknown file key":    {nil, []string{"--config", file}, `unknown key postgress_url; did you mean postgres-url?`},
		"no file":             {nil, []string{"--config", "/nowhere"}, "no such file"},
		"bad level":           {nil, []string{"--log-level", "loud"}, `--log-level is "loud"; must be one of debug, info, warn, error`},
		"bad duration":        {nil, []string{"--drain-timeout", "5"}, `invalid value "5" for flag -drain-timeout`},
		"bad size":            {nil, []string{"--postgres-url", "postgres://h/d", "--max-in-flight-bytes", "lots"}, `invalid value "lots" for flag -max-in-flight-bytes: must be a size such as 67108864 or 64MiB`},
		"bad url":             {nil, []string{"--postgres-url", "postgres://u:hunter2@h:x/d"}, "--postgres-url: cannot parse"},
		"unset reference":     {nil, []string{"--postgres-url", "${env:RELAYCMD_UNSET}"}, "--postgres-url: ${env:RELAYCMD_UNSET}: environment variable is not set"},
		"missing argument":    {nil, []string{"preview", "--postgres-url", "x"}, "usage: test-relay preview NAME"},
		"replay without rows": {nil, []string{"replay", "x", "--postgres-url", "x"}, "select the rows with --from ID"},
		"metrics address":     {nil, []string{"--postgres-url", "postgres://h/d", "--metrics-addr", "nonsense"}, "--metrics-addr"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			code := run(context.Background(), &program{
				name: "test-relay", backends: []relay.Backend{spoolBackend()}, args: tc.args, environ: tc.environ, stdout: &stdout, stderr: &stderr,
			})
			if code != 1 || !strings.Contains(stderr.String(), tc.want) || strings.Contains(stderr.String(), "hunter2") {
				t.Errorf("status %d, %q; want 1 and %q", code, stderr.String(), tc.want)
			}
			if stdout.Len() > 0 {
				t.Errorf("standard output has %q", stdout.String())
			}
		})
	}
}

// Kubernetes sets these in every pod when there is a service called
// pgtrickle-relay, or pgtrickle-relay-metrics.
func TestKubernetesVariables(t *testing.T) {
	t.Parallel()
	environ := []string{
		"PGTRICKLE_RELAY_SERVICE_HOST=10.0.0.1", "PGTRICKLE_RELAY_SERVICE_PORT=9090", "PGTRICKLE_RELAY_SERVICE_PORT_METRICS=9090", "PGTRICKLE_RELAY_PORT=tcp://10.0.0.1:9090",
		"PGTRICKLE_RELAY_PORT_9090_TCP=tcp://10.0.0.1:9090", "PGTRICKLE_RELAY_PORT_9090_TCP_PROTO=tcp", "PGTRICKLE_RELAY_PORT_9090_TCP_PORT=9090", "PGTRICKLE_RELAY_PORT_9090_TCP_ADDR=10.0.0.1",
		"PGTRICKLE_RELAY_METRICS_SERVICE_HOST=10.0.0.1", "PGTRICKLE_RELAY_METRICS_SERVICE_PORT_HTTP=9090", "PGTRICKLE_RELAY_METRICS_PORT=tcp://10.0.0.1:9090", "PGTRICKLE_RELAY_METRICS_PORT_9090_TCP_ADDR=10.0.0.1",
	}
	if _, err := parseArgs(t, environ); err != nil {
		t.Errorf("parse = %v", err)
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for command, file := range map[string]string{
		"-h": "help", "help": "help", "run -h": "help", "status -h": "help_status",
		"dlq discard --help": "help_dlq_discard", "--output json dlq -h discard": "help_dlq_discard", "help dlq discard": "help_dlq_discard",
	} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			args := strings.Fields(command)
			var stdout, stderr bytes.Buffer
			code := run(context.Background(), &program{
				name: "test-relay", backends: []relay.Backend{spoolBackend()}, args: args, environ: []string{"PGTRICKLE_RELAY_POSTGRES_URL=postgres://u:hunter2@h/d"}, stdout: &stdout, stderr: &stderr,
			})
			golden := filepath.Join("testdata", file+".golden")
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden, stdout.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if code != 0 || !bytes.Equal(stdout.Bytes(), want) {
				t.Errorf("%v = %d\n%s\nwant\n%s", args, code, stdout.String(), want)
			}
		})
	}
}
