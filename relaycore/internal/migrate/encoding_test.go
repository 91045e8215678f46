package migrate_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// A database of any encoding can hold the catalog.
func TestUpInOtherEncodings(t *testing.T) {
	t.Parallel()
	for _, encoding := range []string{"LATIN1", "EUC_JP", "SQL_ASCII"} {
		t.Run(encoding, func(t *testing.T) {
			t.Parallel()
			config, err := pg.PoolConfig(pgtest.Encoded(t, encoding), "test", 2)
			if err != nil {
				t.Fatal(err)
			}
			pool, err := pgxpool.NewWithConfig(context.Background(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			if err := migrate.Up(context.Background(), pool, nil); err != nil {
				t.Fatalf("Up: %v", err)
			}
			run(t, pool, `CREATE TABLE public.t (id int PRIMARY KEY, v text, j json)`)
			run(t, pool, `SELECT pgtrickle.enable_outbox('public.t')`)
			run(t, pool, `INSERT INTO public.t VALUES (1, 'a', '"\u20ac"')`) // jsonb would need it in the encoding
			if got := one(t, pool, `SELECT payload::text FROM pgtrickle.outbox_t`); !strings.Contains(got, `"j":"\u20ac"`) {
				t.Errorf("the outbox has %s", got)
			}
		})
	}
}

// A character beyond ASCII may be missing in a database's encoding.
func TestSQLIsASCII(t *testing.T) {
	t.Parallel()
	sql, err := migrate.SQL(nil)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(sql) {
		if strings.IndexFunc(line, func(r rune) bool { return r >= 0x80 }) >= 0 {
			t.Errorf("not ASCII: %s", line)
		}
	}
}
