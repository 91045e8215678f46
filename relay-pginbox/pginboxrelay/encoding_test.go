package pginboxrelay

import (
	"context"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// In a database of any encoding a text is stored as it was sent, or refused.
func TestEncodings(t *testing.T) {
	for encoding, tc := range map[string]struct{ stored, refused string }{
		"UTF8":      {stored: "caf\u00e9 \u20ac"},
		"SQL_ASCII": {stored: "caf\u00e9 \u20ac"}, // any bytes
		"LATIN1":    {stored: "caf\u00e9", refused: "\u20ac"},
		"EUC_JP":    {stored: "\u65e5\u672c", refused: "\U0001f600"},
	} {
		t.Run(encoding, func(t *testing.T) {
			url := pgtest.Encoded(t, encoding)
			pool := pgtest.Open(t, url+"?client_encoding=UTF8")
			mustExec(t, pool, createInbox)
			s := open(t, map[string]any{"url": url, "table": "orders_inbox"})
			batch := []relay.Message{relaytest.Message(1, "a"), relaytest.Message(2, "b"), relaytest.Message(3, "c")}
			batch[1].Row = []byte(`{"v":"` + tc.stored + `"}`)
			if tc.refused != "" {
				batch[2].Row = []byte(`{"v":"` + tc.refused + `"}`)
				if err := s.Publish(t.Context(), batch); !relay.IsPermanent(err) {
					t.Errorf("Publish with %q = %v, want a permanent error", tc.refused, err)
				}
				batch = batch[:2]
			}
			if err := s.Publish(t.Context(), batch); err != nil {
				t.Errorf("Publish with %q = %v", tc.stored, err)
			}

			var got string
			if err := pool.QueryRow(context.Background(), `SELECT payload->>'v' FROM pgtrickle.orders_inbox WHERE event_id = $1`,
				batch[1].ID).Scan(&got); err != nil || got != tc.stored {
				t.Errorf("stored %q (%v), want %q", got, err, tc.stored)
			}
		})
	}
}
