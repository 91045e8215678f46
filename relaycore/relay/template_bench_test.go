package relay_test

import (
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func BenchmarkTemplate(b *testing.B) {
	const row = `{"id": 4711, "region": "eu-central", "customer": {"name": "Ærøskøbing A/S", "tags": ["a", "b", "c"]}, ` +
		`"note": "said \"hello\" at\tnoon", "total": 129.95, "paid": true, "items": [{"sku": "x-1", "n": 2}, {"sku": "x-2", "n": 1}], "at": "2026-03-01T10:00:00Z"}`
	m := relay.Message{ID: "outbox_orders:1:0", StreamTable: "orders", Op: relay.OpInsert, OutboxID: 1, Row: []byte(row)}
	for name, text := range map[string]string{
		"fixed":   "orders.created",
		"table":   "{stream_table}.{op}",
		"first":   "orders.{row.id}",
		"string":  "orders.{row.region}",
		"escaped": "orders.{row.note}",
		"last":    "orders.{row.at}",
	} {
		b.Run(name, func(b *testing.B) {
			t, err := relay.ParseTemplate(text)
			if err != nil {
				b.Fatal(err)
			}
			defer relaytest.ReportCPU(b)()
			var buf []byte
			for b.Loop() {
				if buf, err = t.Append(buf[:0], &m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
