package redisrelay

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Replies that a server gives: each must be the row of the table that its text suggests.
// Three are missing. One needs an entry of 1 GiB. TRYAGAIN needs a slot between two nodes,
// and DENIED a client that is not local.
func TestRefusalsOfAServer(t *testing.T) {
	const do, full = relay.KindUnavailable, relay.KindFull
	command := func(args ...any) func(*testing.T, *server, *redis.Client) error {
		return func(t *testing.T, _ *server, c *redis.Client) error { return c.Do(t.Context(), args...).Err() }
	}
	after := func(setup []any, args ...any) func(*testing.T, *server, *redis.Client) error {
		return func(t *testing.T, _ *server, c *redis.Client) error {
			if err := c.Do(t.Context(), setup...).Err(); err != nil {
				t.Fatal(err)
			}
			return c.Do(t.Context(), args...).Err()
		}
	}
	add := []any{"XADD", "s", "*", "a", "b"}
	for name, tc := range map[string]struct {
		args []string
		ask  func(t *testing.T, srv *server, c *redis.Client) error
		kind relay.RefusalKind
	}{
		"exhausted": {nil, after([]any{"XADD", "s", "18446744073709551615-18446744073709551615", "a", "b"}, add...), full},
		"OOM":       {nil, after([]any{"CONFIG", "SET", "maxmemory", "1"}, add...), full},
		"MISCONF": {[]string{"--appendonly", "no", "--save", "3600 1"}, func(t *testing.T, srv *server, c *redis.Client) error {
			if err := os.RemoveAll(srv.dir); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = os.MkdirAll(srv.dir, 0o755) }()
			c.Do(t.Context(), "BGSAVE")
			eventually(t, "a save has failed", func() bool {
				return strings.Contains(c.Info(t.Context(), "persistence").Val(), "rdb_last_bgsave_status:err")
			})
			return c.Do(t.Context(), add...).Err()
		}, full},
		"max number of clients": {nil, func(t *testing.T, srv *server, c *redis.Client) error {
			if err := c.ConfigSet(t.Context(), "maxclients", "1").Err(); err != nil {
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", srv.addr) // a client may see the end of its connection first
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			text, err := io.ReadAll(conn)
			return cmp.Or(err, error(reply(strings.TrimPrefix(strings.TrimSpace(string(text)), "-"))))
		}, full},
		"READONLY":    {nil, after([]any{"REPLICAOF", "127.0.0.1", "1"}, add...), do},
		"MASTERDOWN":  {[]string{"--replica-serve-stale-data", "no"}, after([]any{"REPLICAOF", "127.0.0.1", "1"}, "XLEN", "s"), do},
		"NOREPLICAS":  {nil, after([]any{"CONFIG", "SET", "min-replicas-to-write", "1"}, add...), do},
		"CLUSTERDOWN": {[]string{"--cluster-enabled", "yes"}, command(add...), do},
		"LOADING": {[]string{"--appendonly", "no", "--rdbcompression", "no"}, func(t *testing.T, srv *server, c *redis.Client) error {
			for i := range 100 {
				c.Set(t.Context(), fmt.Sprint(i), strings.Repeat("x", 1<<10), 0)
			}
			c.Save(t.Context())
			srv.opaque = true // it answers, but not a PING
			srv.args = []string{"--appendonly", "no", "--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024"}
			srv.restart(t)
			return srv.client(t).Do(t.Context(), add...).Err()
		}, do},
		"BUSY": {[]string{"--busy-reply-threshold", "50"}, func(t *testing.T, srv *server, c *redis.Client) error {
			go srv.client(t).Eval(t.Context(), "while true do end", nil)
			var err error
			eventually(t, "the script is too slow", func() bool { err = c.Do(t.Context(), add...).Err(); return err != nil })
			c.Do(t.Context(), "SCRIPT", "KILL")
			return err
		}, do},
		"NOGROUP":    {nil, command("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"), do},
		"WRONGTYPE":  {nil, after([]any{"SET", "s", "x"}, add...), relay.KindWrongType},
		"NOPERM key": {nil, after([]any{"ACL", "SETUSER", "default", "resetkeys", "~other"}, add...), relay.KindDenied},
		"NOPERM":     {nil, after([]any{"ACL", "SETUSER", "default", "-xadd"}, add...), relay.KindCredentials},
		"WRONGPASS":  {nil, command("AUTH", "nobody", "wrong"), relay.KindCredentials},
		"ERR AUTH":   {nil, command("AUTH", "wrong"), relay.KindCredentials},
		"NOAUTH": {nil, func(t *testing.T, srv *server, c *redis.Client) error {
			if err := c.ConfigSet(t.Context(), "requirepass", "secret").Err(); err != nil {
				t.Fatal(err)
			}
			return srv.client(t).Do(t.Context(), add...).Err()
		}, relay.KindCredentials},
		"unknown command":       {nil, command("XNOTHING"), relay.KindSetup},
		"CROSSSLOT":             {[]string{"--cluster-enabled", "yes"}, after([]any{"CLUSTER", "ADDSLOTSRANGE", 0, 16383}, "MGET", "a", "b"), relay.KindSetup},
		"NOPROTO":               {nil, command("HELLO", "9"), relay.KindSetup},
		"DB index":              {nil, command("SELECT", "99"), relay.KindSetup},
		"SELECT is not allowed": {[]string{"--cluster-enabled", "yes"}, command("SELECT", "1"), relay.KindSetup},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newServer(t, tc.args...)
			srv.dir = filepath.Join(srv.dir, "data")
			if err := os.Mkdir(srv.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			srv.start(t)
			err := tc.ask(t, srv, srv.client(t))
			if err == nil || !isReply(err) {
				t.Fatalf("the server answered %v, want a refusal", err)
			}
			row := refusals.Find(err.Error())
			if row.Kind != tc.kind || row.Answer == "" {
				t.Errorf("%q is of kind %q, want %q", err, row.Kind, tc.kind)
			}
			fatal := row.Blame == relay.BlamePipeline || row.Blame == relay.BlameDestination
			if got := classify(err); relay.IsFatal(got) != fatal || relay.IsPermanent(got) != (row.Blame == relay.BlameMessage) {
				t.Errorf("%v is fatal %t, permanent %t; its row blames the %s", err, relay.IsFatal(got), relay.IsPermanent(got), row.Blame)
			}
		})
	}
}
