package outbox_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func startup(value string) func(*outbox.Config) {
	return func(c *outbox.Config) { c.Settings.Startup = value }
}

// TestStartup begins pipelines at each place, with a transaction open across the start.
func TestStartup(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		write := `INSERT INTO pgtrickle.outbox_orders (payload) VALUES ('{"v":1,"inserted":[{}],"updated":[],"deleted":[]}')`
		exec(t, pool, write) // 1
		slow := begin(t, pool)
		in(t, slow, write) // 2
		exec(t, pool, write)
		exec(t, pool, write) // 4

		latest := open(t, pool, relay.Checkpoint{}, startup("latest"))
		at := open(t, pool, relay.Checkpoint{}, startup("at:3"))
		earliest := open(t, pool, relay.Checkpoint{}, startup(""))
		nothing(t, latest)
		c := checkpoint(t, latest, nil)
		exec(t, pool, write) // 5
		commit(t, slow)

		late, known := "5:0", "" // the fence goes by ids: row 2 is left out
		if latest.Strategy() == "window" {
			late, known = "2:0 5:0", "2:0 "
		}
		for name, tc := range map[string]struct {
			src  *outbox.Source
			want string
		}{
			"latest":   {latest, late},
			"restart":  {open(t, pool, c, startup("latest")), late},
			"offset":   {open(t, pool, relay.Checkpoint{LastID: 4}, startup("latest")), "5:0"},
			"at":       {at, "3:0 4:0 5:0"},
			"earliest": {earliest, "1:0 2:0 3:0 4:0 5:0"},
		} {
			got := receive(t, tc.src, strings.Count(tc.want, " ")+1)
			if ids(got) != tc.want && ids(got) != known+tc.want {
				t.Errorf("%s: %s, want %s", name, ids(got), tc.want)
			}
			waitFor(t, tc.src, got, 5)
			if n, err := tc.src.Unaccounted(context.Background()); n != 0 || err != nil {
				t.Errorf("%s: Unaccounted = %d, %v", name, n, err)
			}
		}
	})
}

func TestStartupRefusals(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		_, err := outbox.Open(context.Background(), pool, outbox.Config{
			Outbox: "outbox_orders", Group: "g", Pipeline: "p", Settings: outbox.Settings{Startup: "at:2"},
		})
		if !relay.IsFatal(err) || !strings.Contains(err.Error(), "set startup to an id up to 1") {
			t.Errorf("startup beyond the newest row: %v", err)
		}
	})
}
