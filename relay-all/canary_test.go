package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// bases are configurations that lead nowhere, by backend and end.
var bases = map[string]map[string]any{
	"nats sink": {"url": "nats://127.0.0.1:1"}, "nats source": {"url": "nats://127.0.0.1:1", "stream": "s"},
	"kafka sink": {"brokers": "127.0.0.1:1"}, "kafka source": {"brokers": "127.0.0.1:1", "topic": "t"},
	"redis sink": {"url": "redis://127.0.0.1:1"}, "redis source": {"url": "redis://127.0.0.1:1", "stream": "s"},
	"rabbitmq sink": {"url": "amqp://127.0.0.1:1"}, "rabbitmq source": {"url": "amqp://127.0.0.1:1", "queue": "q"},
	"sqs sink": {"queue_url": "http://127.0.0.1:1/0/q"}, "sqs source": {"queue_url": "http://127.0.0.1:1/0/q"},
	"pg-inbox sink": {"url": "postgres://127.0.0.1:1/x", "table": "t"},
	"webhook sink":  {"url": "http://127.0.0.1:1", "allow_private": true}, "webhook source": {"bind": "127.0.0.1:0", "auth": "none"},
	"stdout sink": {"path": "/dev/null"}, "stdout source": {"path": "/nowhere"},
}

// values are the shapes in which a secret stands in a key.
var values = map[string]func(ref string) any{
	"whole":  func(ref string) any { return ref },
	"part":   func(ref string) any { return "x " + ref + " {y" },
	"url":    func(ref string) any { return "http://u:" + ref + "%zz@127.0.0.1:1/p?k=" + ref },
	"list":   func(ref string) any { return []string{ref, "x" + ref} },
	"object": func(ref string) any { return map[string]string{"X-Canary": ref, "bad name": ref} },
}

// shownByDesign are keys whose values are the key of a message, which is stored to
// hold back the messages behind a dead letter.
var shownByDesign = []string{"key_template"}

// TestCanaries puts a secret into every key of every backend, right and wrong, and
// looks for it in all that the relay shows.
func TestCanaries(t *testing.T) {
	pool, url := database(t)
	exec1(t, pool, `CREATE TABLE public.orders (id int PRIMARY KEY, note text)`)
	exec1(t, pool, `SELECT pgtrickle.enable_outbox('public.orders'), pgtrickle.create_inbox('box')`)
	exec1(t, pool, `INSERT INTO public.orders SELECT g, 'x' FROM generate_series(1, 3) g`)

	out, err := exec.CommandContext(t.Context(), binary(t), "keys", "--output", "json").Output()
	if err != nil {
		t.Fatal(err)
	}
	type key struct{ Name string }
	var backends []struct {
		Name         string
		Sink, Source []key
	}
	if err := json.Unmarshal(out, &backends); err != nil {
		t.Fatal(err)
	}
	var env []string
	pipelines := 0
	set := func(backend, end, name, shape string, inFar bool) {
		pipelines++
		variable := fmt.Sprintf("PGTRICKLE_SECRET_%d", pipelines)
		env = append(env, fmt.Sprintf("%s=canary%dz", variable, pipelines))
		far := map[string]any{"type": backend}
		maps.Copy(far, bases[backend+" "+end])
		near, table := map[string]any{"outbox": "public.orders"}, "relay_outbox_config"
		config := map[string]any{"source": near, "sink": far}
		if end == "source" {
			near, table = map[string]any{"inbox": "box"}, "relay_inbox_config"
			config = map[string]any{"source": far, "sink": near}
		}
		value := values[shape]("${env:" + variable + "}")
		if inFar {
			far[name] = value
		} else {
			near[name] = value
		}
		raw, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		exec1(t, pool, `INSERT INTO pgtrickle.`+table+` (name, enabled, config) VALUES ($1, true, $2)`,
			fmt.Sprintf("%03d %s %s %s", pipelines, backend, name, shape), string(raw))
	}
	for _, b := range backends {
		for end, keys := range map[string][]key{"sink": b.Sink, "source": b.Source} {
			for _, k := range keys {
				switch {
				case slices.Contains(shownByDesign, k.Name):
				case b.Name == "*":
					set("stdout", end, k.Name, "whole", false)
					set("webhook", end, k.Name, "object", false)
				case strings.Contains(k.Name, "url") || k.Name == "brokers" || k.Name == "endpoint":
					set(b.Name, end, k.Name, "whole", true)
					set(b.Name, end, k.Name, "url", true)
					set(b.Name, end, k.Name, "list", true)
				case k.Name == "headers":
					set(b.Name, end, k.Name, "object", true)
				default:
					set(b.Name, end, k.Name, "whole", true)
					set(b.Name, end, k.Name, "part", true)
				}
			}
		}
	}
	t.Logf("%d pipelines", pipelines)
	if pipelines < 500 {
		t.Errorf("%d secrets, want 500", pipelines)
	}

	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	t.Chdir(t.TempDir()) // the file sink creates what a relative path names
	const access = "--allow-files=/"
	p := start(t, url, "--log-level", "debug", "--log-format", "json", "--pprof", access)
	eventually(t, "all pipelines are tried", 2*patience, func() bool {
		h := p.health(t)
		return len(h.Pipelines) == pipelines && !strings.Contains(h.body, `"state":"starting"`)
	})
	time.Sleep(3 * time.Second) // for second attempts

	shown := map[string]string{}
	for _, path := range []string{"/health", "/status.json", "/metrics", "/", "/livez", "/readyz", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1"} {
		resp, err := http.Get("http://" + p.addr + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode >= 500 && path != "/health" {
			t.Fatalf("GET %s = %d, %v", path, resp.StatusCode, err)
		}
		shown[path] = string(body)
	}
	for _, args := range []string{"check --output json", "status", "status --output json", "dlq list --output json", "dlq summary"} {
		cmd := exec.CommandContext(t.Context(), binary(t), append(strings.Fields(args), "--postgres-url", url, access)...)
		out, _ := cmd.CombinedOutput() // check fails, as it should
		shown[args] = string(out)
	}
	for _, name := range []string{"headers", "subject_template"} {
		pipeline := query1[string](t, pool, `SELECT name FROM pgtrickle.relay_outbox_config WHERE name LIKE '%stdout '||$1||' whole'
			UNION ALL SELECT name FROM pgtrickle.relay_outbox_config WHERE name LIKE '%webhook '||$1||' object' ORDER BY 1 DESC LIMIT 1`, name)
		out, _ := exec.CommandContext(t.Context(), binary(t), "preview", pipeline, "--postgres-url", url, access).CombinedOutput()
		shown["preview "+name] = string(out)
	}
	for _, table := range []string{"relay_cursors", "relay_dead_letters", "relay_consumer_offsets", "relay_instances"} {
		shown[table] = query1[string](t, pool, `SELECT coalesce(string_agg(r::text, E'\n'), '') FROM pgtrickle.`+table+` r`)
	}
	shown["log"] = p.log.String()

	canary := regexp.MustCompile(`canary[0-9]+z`)
	for where, text := range shown {
		if text == "" && where != "relay_dead_letters" {
			t.Errorf("%s is empty", where)
		}
		for line := range strings.Lines(text) {
			if found := canary.FindString(line); found != "" {
				at := strings.Index(line, found)
				t.Errorf("%s shows %s: …%.400s", where, found, line[max(0, at-200):])
			}
		}
	}
}
