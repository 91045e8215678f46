package main

import (
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// noPeer are the ends that connect to nothing.
var noPeer = []string{"stdout sink", "stdout source", "webhook source"}

// furtherPeers are further ways by which a backend connects.
var furtherPeers = map[string]map[string]any{
	"redis sink cluster":   {"url": "redis+cluster://127.0.0.1:1"},
	"redis sink sentinel":  {"url": "redis+sentinel://127.0.0.1:1/m"},
	"redis sink socket":    {"url": "unix://SOCKET"},
	"nats sink ws":         {"url": "ws://127.0.0.1:1"},
	"sqs sink endpoint":    {"queue_url": "http://8.8.8.8/0/q", "endpoint": "http://127.0.0.1:1"},
	"sqs sink role":        {"queue_url": "http://127.0.0.1:1/0/q", "role_arn": "arn:aws:iam::1:role/r"},
	"pg-inbox sink socket": {"url": "postgres:///x?host=SOCKETDIR", "table": "t"},
}

// TestAllowPrivate starts the relay with a list of networks that forbids the addresses of
// all pipelines, and counts connections. All pipelines fail with the flag's name. With a
// list that permits the addresses, all of them connect.
func TestAllowPrivate(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "x")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	t.Setenv("AWS_REGION", "us-east-1")
	pool, url := database(t)
	exec1(t, pool, `CREATE TABLE public.orders (id int PRIMARY KEY, note text)`)
	exec1(t, pool, `SELECT pgtrickle.enable_outbox('public.orders'), pgtrickle.create_inbox('box')`)

	connected := map[string]*atomic.Int64{}
	listen := func(name, network, address string) net.Addr {
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		connected[name] = new(atomic.Int64)
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				connected[name].Add(1)
				_ = conn.Close()
			}
		}()
		return ln.Addr()
	}
	set := func(name string, far map[string]any, host string) {
		backend, end, _ := strings.Cut(name, " ")
		end, _, _ = strings.Cut(end, " ")
		far = maps.Clone(far)
		far["type"] = backend
		dir := t.TempDir()
		socket := slices.ContainsFunc(slices.Collect(maps.Values(far)), func(v any) bool { return strings.Contains(fmt.Sprint(v), "SOCKET") })
		at := ""
		if socket {
			listen(name, "unix", filepath.Join(dir, ".s.PGSQL.5432"))
		} else {
			at = strings.Replace(listen(name, "tcp", "127.0.0.1:0").String(), "127.0.0.1", host, 1)
		}
		for key, value := range far {
			if text, ok := value.(string); ok {
				far[key] = strings.NewReplacer("127.0.0.1:1", at, "SOCKETDIR", dir, "SOCKET", dir+"/.s.PGSQL.5432").Replace(text)
			}
		}
		near, table := map[string]any{"outbox": "public.orders"}, "relay_outbox_config"
		config := map[string]any{"source": near, "sink": far}
		if end == "source" {
			near, table = map[string]any{"inbox": "box"}, "relay_inbox_config"
			config = map[string]any{"source": far, "sink": near}
		}
		exec1(t, pool, `INSERT INTO pgtrickle.`+table+` (name, enabled, config) VALUES ($1, true, $2)`, name, config)
	}
	all := maps.Clone(furtherPeers)
	for _, b := range linked {
		for _, end := range []string{"sink", "source"} {
			name := b.Name + " " + end
			if end == "sink" && b.Sink.IsZero() || end == "source" && b.Source.IsZero() || slices.Contains(noPeer, name) {
				continue
			}
			if all[name] = bases[name]; all[name] == nil {
				t.Fatalf("no configuration for %s", name)
			}
		}
	}
	for name, far := range all {
		set(name, far, "127.0.0.1")
		if !strings.Contains(fmt.Sprint(far), "SOCKET") {
			set(name+" by name", far, "localhost")
		}
	}

	t.Run("forbidden", func(t *testing.T) {
		p := start(t, url, "--allow-private", "10.0.0.0/8,127.0.0.2")
		eventually(t, "all pipelines are tried", 2*patience, func() bool {
			tried := query1[int](t, pool, `SELECT count(*) FROM pgtrickle.relay_cursors WHERE status = 'failed'`)
			for _, n := range connected {
				tried += int(min(n.Load(), 1))
			}
			return tried >= len(connected)
		})
		p.kill()
		if other := query1[string](t, pool, `SELECT coalesce(string_agg(pipeline || ': ' || error, E'\n'), '')
			FROM pgtrickle.relay_cursors WHERE status <> 'failed' OR error NOT LIKE '%--allow-private 127.0.0.1%'`); other != "" {
			t.Errorf("not failed, or without the flag's name:\n%s", other)
		}
		for name, n := range connected {
			if n.Load() != 0 {
				t.Errorf("%s connected %d times", name, n.Load())
			}
		}
	})
	t.Run("permitted", func(t *testing.T) {
		start(t, url, "--allow-private", "127.0.0.0/8, ::1")
		eventually(t, "all pipelines connect", 2*patience, func() bool {
			for _, n := range connected {
				if n.Load() == 0 {
					return false
				}
			}
			return true
		})
	})
}
