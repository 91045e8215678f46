package outbox_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// TestPlainRole reads with nothing but what the role pgtrickle_relay gives.
func TestPlainRole(t *testing.T) {
	t.Parallel()
	for _, strategy := range []string{"window", "fence"} {
		t.Run(strategy, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			pool := pgtest.Pool(t)
			if err := migrate.Up(ctx, pool, nil); err != nil {
				t.Fatal(err)
			}
			exec(t, pool, `CREATE TABLE public.orders (id int PRIMARY KEY); SELECT pgtrickle.enable_outbox('public.orders')`)
			plain := pgtest.Open(t, plainRole(t, pool.Config().ConnString()))
			src, err := outbox.Open(ctx, plain, outbox.Config{Outbox: "public.orders", Group: "g", Pipeline: "p", Settings: outbox.Settings{Strategy: strategy}})
			if err != nil {
				t.Fatal(err)
			}
			slow := begin(t, pool)
			in(t, slow, "INSERT INTO public.orders VALUES (1)")
			exec(t, pool, "INSERT INTO public.orders VALUES (2)")
			got := receive(t, src, 1)
			nothing(t, src)
			commit(t, slow)
			got = append(got, receive(t, src, 1)...)
			waitFor(t, src, got, 2)
			if _, _, err := src.Lag(ctx); err != nil {
				t.Error(err)
			}
			if n, err := src.Unaccounted(ctx); n != 0 || err != nil {
				t.Errorf("Unaccounted = %d, %v", n, err)
			}
		})
	}
}

// plainRole makes a role that only inherits pgtrickle_relay and returns the URL for
// it.
func plainRole(t *testing.T, database string) string {
	t.Helper()
	admin := pgtest.Open(t, database)
	role := fmt.Sprintf("relay_test_%d", rand.Int64())
	exec(t, admin, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'relay' IN ROLE pgtrickle_relay", role))
	t.Cleanup(func() { exec(t, admin, "DROP ROLE "+role) })
	admin.Reset()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "relay")
	return u.String()
}
