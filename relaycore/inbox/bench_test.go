package inbox_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/inbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

const benchRow = `{"id": %d, "note": "twelve boxes of something, to be left with the neighbours", "total": 1234.56, "status": "open", "customer": "c-1071", "created_at": "2026-11-22T18:00:00.123456+00:00", "address": "Havnegade 12, Ærøskøbing", "warehouse": "north-2"}`

const rawInsert = `INSERT INTO raw_inbox (event_id, payload, event_type, source, aggregate_id)
	SELECT i, p::jsonb, t, s, a FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS u(i, p, t, s, a)
	ON CONFLICT (event_id) DO NOTHING`

// BenchmarkPublish compares the cost of the sink with that of SQL written
// by hand. The two take turns, batch by batch, so that a busy machine is equally busy
// for both. The ratio is that of their median times.
func BenchmarkPublish(b *testing.B) {
	for _, size := range []int{1, 100, 1000, 10000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			pool := pgtest.Pool(b)
			mustExec(b, pool, createInbox)
			mustExec(b, pool, "CREATE TABLE raw_inbox (LIKE orders_inbox INCLUDING ALL)")
			s := open(b, pool, inbox.Config{})
			batch := make([]relay.Message, size)
			var cols [5][]string
			for c := range cols {
				cols[c] = make([]string, size)
			}
			for i := range batch {
				batch[i] = relay.Message{Subject: "orders.insert", Key: strconv.Itoa(i % 100), Row: fmt.Appendf(nil, benchRow, i)}
				cols[1][i], cols[2][i], cols[3][i], cols[4][i] = string(batch[i].Row), "orders.insert", "pipe", batch[i].Key
			}
			var ours, raw []time.Duration
			n := 0
			for b.Loop() {
				for i := range batch {
					n++
					batch[i].ID = "outbox_orders:" + strconv.Itoa(n) + ":0"
					cols[0][i] = batch[i].ID
				}
				began := time.Now()
				if err := s.Publish(context.Background(), batch); err != nil {
					b.Fatal(err)
				}
				between := time.Now()
				if _, err := pool.Exec(context.Background(), rawInsert, cols[0], cols[1], cols[2], cols[3], cols[4]); err != nil {
					b.Fatal(err)
				}
				ours, raw = append(ours, between.Sub(began)), append(raw, time.Since(between))
			}
			b.ReportMetric(float64(size)/median(ours).Seconds(), "rows/s")
			b.ReportMetric(float64(size)/median(raw).Seconds(), "raw-rows/s")
			b.ReportMetric(float64(median(raw))/float64(median(ours)), "of-raw")
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
