package inbox_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/inbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

const benchRow = `{"id": %d, "note": "twelve boxes of something, to be left with the neighbours", "total": 1234.56, "status": "open", "customer": "c-1071", "created_at": "2026-11-22T18:00:00.123456+00:00", "address": "Havnegade 12, Ærøskøbing", "warehouse": "north-2"}`

// BenchmarkPublish against BenchmarkRawUnnest says what the sink costs beyond the
// SQL that one would write by hand. Rows per second are what counts.
func BenchmarkPublish(b *testing.B) {
	for _, size := range []int{1, 100, 1000, 10000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			pool := pgtest.Pool(b)
			mustExec(b, pool, createInbox)
			s := open(b, pool, inbox.Config{})
			batch := make([]relay.Message, size)
			for i := range batch {
				batch[i] = relay.Message{Subject: "orders.insert", Key: strconv.Itoa(i % 100), Row: fmt.Appendf(nil, benchRow, i)}
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range batch {
					n++
					batch[i].ID = "outbox_orders:" + strconv.Itoa(n) + ":0"
				}
				if err := s.Publish(context.Background(), batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

func BenchmarkRawUnnest(b *testing.B) {
	const sql = `INSERT INTO orders_inbox (event_id, payload, event_type, source, aggregate_id)
		SELECT i, p::jsonb, t, s, a FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS u(i, p, t, s, a)
		ON CONFLICT (event_id) DO NOTHING`
	for _, size := range []int{1, 100, 1000, 10000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			pool := pgtest.Pool(b)
			mustExec(b, pool, createInbox)
			var cols [5][]string
			for c := range cols {
				cols[c] = make([]string, size)
			}
			for i := range size {
				cols[1][i], cols[2][i], cols[3][i], cols[4][i] = fmt.Sprintf(benchRow, i), "orders.insert", "pipe", strconv.Itoa(i%100)
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range size {
					n++
					cols[0][i] = "outbox_orders:" + strconv.Itoa(n) + ":0"
				}
				if _, err := pool.Exec(context.Background(), sql, cols[0], cols[1], cols[2], cols[3], cols[4]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
