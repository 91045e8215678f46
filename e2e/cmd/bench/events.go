package main

import (
	"context"
	"iter"
	"slices"
	"strconv"
)

// message is an event as the relay sends it.
type message struct {
	id, outboxID string
	row, body    []byte
}

// Ids as long as those of the relay: ID.TIME:ROW:INDEX for the event, and PIPELINE. before
// that for the delivery.
const (
	outboxIdentity = "aaaaaaaaaaaa.bbbbbbbbbb"
	pipelineID     = "cccccccccccc"
)

func (m *message) delivery() string { return pipelineID + "." + m.id }

// feed hands out events in chunks of chunkRows. A chunk is not used again.
type feed = iter.Seq2[[]message, error]

const chunkRows = 1000

// overlapped runs events in a goroutine of its own, a few chunks ahead.
func overlapped(events feed) feed {
	type result struct {
		chunk []message
		err   error
	}
	return func(yield func([]message, error) bool) {
		ahead, stop := make(chan result, 4), make(chan struct{})
		defer close(stop)
		go func() {
			defer close(ahead)
			for chunk, err := range events {
				select {
				case ahead <- result{chunk, err}:
				case <-stop:
					return
				}
			}
		}()
		for r := range ahead {
			if !yield(r.chunk, r.err) {
				return
			}
		}
	}
}

// sending returns t with both ways to send n events by a client: alone, from memory, and
// as a copy, while they are read. The events must be loaded before the client is alone.
func (b *bench) sending(t target, n int, send func(context.Context, feed) error) target {
	t.alone = func(ctx context.Context) error {
		return send(ctx, func(yield func([]message, error) bool) {
			for chunk := range slices.Chunk(b.loaded[:n], chunkRows) {
				if !yield(chunk, nil) {
					return
				}
			}
		})
	}
	t.copy = b.copying(n, send)
	return t
}

// load reads n events into memory, once.
func (b *bench) load(ctx context.Context, n int) error {
	if len(b.loaded) >= n {
		return nil
	}
	b.loaded = make([]message, 0, n)
	return b.keyset(ctx, n, func(chunk []message) bool {
		b.loaded = append(b.loaded, chunk...)
		return true
	})
}

// copying sends n events while they are read. It does what no relay can leave out: the
// same read, the same bytes to the same client. It leaves out checkpoints, confirmation by
// key, retries, dead letters and metrics.
func (b *bench) copying(n int, send func(context.Context, feed) error) func(context.Context) error {
	return func(ctx context.Context) error {
		return send(ctx, overlapped(func(yield func([]message, error) bool) {
			if err := b.keyset(ctx, n, func(chunk []message) bool { return yield(chunk, nil) }); err != nil {
				yield(nil, err)
			}
		}))
	}
}

// Of a payload, what stands before and behind the row.
const (
	payloadHead = `{"v":1,"inserted":[`
	payloadTail = `],"updated":[],"deleted":[]}`
)

// keyset reads the outbox as fast as one connection can, the columns that the relay reads.
// It makes the rows messages, if there is a use for them.
func (b *bench) keyset(ctx context.Context, n int, use func([]message) bool) error {
	conn, err := b.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	const sql = `SELECT id, refresh_id, created_at, is_claim_check, payload ` +
		`FROM pgtrickle.outbox_bench WHERE id > $1::bigint ORDER BY id LIMIT $2::int`
	last := []byte("0")
	for got := 0; got < n; {
		limit := strconv.AppendInt(nil, int64(min(chunkRows, n-got)), 10)
		r := conn.Conn().PgConn().ExecParams(ctx, sql, [][]byte{last, limit}, nil, nil, nil)
		var chunk []message
		var memory []byte
		if use != nil {
			chunk, memory = make([]message, 0, chunkRows), make([]byte, 0, 700<<10)
		}
		for r.NextRow() {
			v := r.Values()
			last = append(last[:0], v[0]...)
			if got++; use != nil {
				var m message
				m, memory = newMessage(string(v[0]), v[4], memory)
				chunk = append(chunk, m)
			}
		}
		if _, err := r.Close(); err != nil {
			return err
		}
		if use != nil && !use(chunk) {
			return nil
		}
	}
	return nil
}

// newMessage makes the envelope of a payload with one row, in memory.
func newMessage(outboxID string, payload, memory []byte) (message, []byte) {
	m := message{id: outboxIdentity + ":" + outboxID + ":0", outboxID: outboxID}
	start := len(memory)
	memory = append(memory, `{"dedup_key":"`...)
	memory = append(memory, m.id...)
	memory = append(memory, `","subject":"pgtrickle.bench.insert","payload":`...)
	row := len(memory)
	memory = append(memory, payload[len(payloadHead):len(payload)-len(payloadTail)]...)
	m.row = memory[row:len(memory):len(memory)]
	memory = append(memory, `,"op":"insert","is_full_refresh":false,"outbox_id":`...)
	memory = append(memory, outboxID...)
	memory = append(memory, `,"refresh_id":null}`...)
	m.body = memory[start:len(memory):len(memory)]
	return m, memory
}
