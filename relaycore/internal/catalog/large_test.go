package catalog

import (
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// A configuration of more than 256 KiB is refused, and one that went past the function
// into the table is not transferred.
func TestLargeConfig(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.URL(t))
	if err := migrate.Up(t.Context(), db, nil); err != nil {
		t.Fatal(err)
	}
	const config = `jsonb_build_object('sink_type', 'stdout', 'stream_table', repeat('x', 300000))`
	_, err := db.Exec(t.Context(), `SELECT pgtrickle.set_relay_outbox('large', `+config+`)`)
	if err == nil || !strings.Contains(err.Error(), "larger than 256 KiB") || len(err.Error()) > 1000 {
		t.Errorf("set_relay_outbox = %.300v, want an error about the size", err)
	}
	if _, err := db.Exec(t.Context(), `INSERT INTO pgtrickle.relay_outbox_config (name, config) VALUES ('large', `+config+`)`); err != nil {
		t.Fatal(err)
	}
	reg, err := relay.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	found, err := New(reg, relaycfg.Unrestricted()).Load(t.Context(), db)
	if err != nil || len(found) != 1 || found[0].Err == nil || !strings.Contains(found[0].Err.Error(), "at most 262144 are read") {
		t.Fatalf("Load = %.300v, %v; want one pipeline with an error", found, err)
	}
	if len(found[0].Stored) > 1000 {
		t.Errorf("%d bytes were transferred", len(found[0].Stored))
	}
}
