package engine_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// compacted is a script that wants tombstones.
type compacted struct {
	*script
	unknown int // answers that fail
}

func (s *compacted) Tombstones(_ context.Context, m *relay.Message) (bool, error) {
	if s.unknown--; s.unknown >= 0 {
		return false, errors.New("broker is down")
	}
	return m.StreamTable == "orders", nil
}

// resumable is a compacted that can be read back.
type resumable struct{ *compacted }

func (s resumable) Position(context.Context) (string, error) { return "0", nil }

func (s resumable) Resume(ctx context.Context, at string, seen func(string)) error {
	return s.Sink.(relay.Resumer).Resume(ctx, at, seen)
}

// ending makes row 2 a delete and row 3 an update that takes key k2 away, and gives the
// key to row 4.
func ending() *bench {
	b := newBench(4, 100)
	rows := b.source.rows
	rows[1].Op, rows[2].Op = relay.OpDelete, relay.OpUpdate
	rows[2].BeforeKey, rows[2].Before = "k2", []byte(`{"n":0,"key":"k2"}`)
	rows[2].Key, rows[3].Key = "k9", "k2"
	return b
}

func (b *bench) wantTombstones() *compacted {
	sink := &compacted{script: b.sink}
	b.cfg.Sink = resumable{sink}
	return sink
}

const tombstone = ":0:tombstone"

func (b *bench) arrivedTombstones() (ids []string) {
	for _, id := range b.arrived() {
		ids = append(ids, strings.Replace(id, tombstone, "t", 1))
	}
	return ids
}

// A tombstone follows a delete, and an update that took a key away, and lies before the
// next message of its key. It has no body, and the row that had the key.
func TestTombstones(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ending()
		b.wantTombstones().unknown = 3
		b.start()
		time.Sleep(time.Minute)
		b.finish(t)
		want(t, "arrived", b.arrivedTombstones(), []string{"1", "2", "2t", "3", "3t", "4"})
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, int64(4))
		for _, m := range b.queue.Messages() {
			if gone := strings.HasSuffix(m.ID, tombstone); gone != (m.Body == nil) || gone && (m.Op != relay.OpDelete || m.BeforeKey != "") {
				t.Errorf("message %+v arrived", m)
			}
			if m.ID == "outbox_orders:3"+tombstone && (m.Key != "k2" || !bytes.Contains(m.Row, []byte(`"n":0`))) {
				t.Errorf("the tombstone of an update has key %q and row %s", m.Key, m.Row)
			}
		}
	})
}

// The relay is killed between an event and its tombstone: the event is at the far end
// and settled by nothing. The next owner sends the tombstone alone.
func TestTombstoneAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ending()
		b.wantTombstones()
		b.sink.answer = func(_ int, batch []relay.Message) error {
			failed := make(map[int]error)
			for i := range batch {
				if batch[i].OutboxID > 2 || batch[i].IsTombstone() {
					failed[i] = errors.New("broker is down")
				}
			}
			if len(failed) == 0 {
				return nil
			}
			return &relay.BatchError{Failed: failed}
		}
		b.start()
		time.Sleep(time.Second)
		b.kill()
		<-b.result
		want(t, "arrived before the crash", b.arrivedTombstones(), []string{"1", "2"})
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, int64(1))

		b.sink.script(nil)
		b.source = b.source.reopen(b.ledger.state.Checkpoint)
		b.cfg.Source, b.cfg.State = b.source, b.ledger.state
		b.start()
		time.Sleep(time.Minute)
		b.finish(t)
		want(t, "arrived", b.arrivedTombstones(), []string{"1", "2", "2t", "3", "3t", "4"})
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, int64(4))
	})
}

// A tombstone waits behind a dead letter of its key, and one that is refused holds its key
// back. Both come as tombstones from the dead letters.
func TestTombstonesAsDeadLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ending()
		b.wantTombstones()
		b.sink.answer = func(_ int, batch []relay.Message) error {
			failed := make(map[int]error)
			for i := range batch {
				if id := batch[i].ID; id == "outbox_orders:2:0" || id == "outbox_orders:3"+tombstone {
					failed[i] = relay.Permanent(errors.New("refused"))
				} else if len(failed) > 0 && (strings.HasPrefix(id, "outbox_orders:2") || id == "outbox_orders:4:0") {
					failed[i] = relay.ErrHeldBack
				}
			}
			if len(failed) == 0 {
				return nil
			}
			return &relay.BatchError{Failed: failed}
		}
		b.start()
		time.Sleep(time.Minute)
		want(t, "arrived", b.arrivedTombstones(), []string{"1", "3"})
		want(t, "dead letters", len(b.ledger.held()), 4)
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, int64(4))
		b.sink.script(nil)
		b.ledger.retryAll()
		b.engine.Redrive()
		time.Sleep(time.Minute)
		b.finish(t)
		want(t, "arrived in the end", b.arrivedTombstones(), []string{"1", "3", "2", "2t", "3t", "4"})
		want(t, "dead letters in the end", b.ledger.held(), []engine.DeadLetter(nil))
	})
}
