package store_test

import (
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// noise returns n bytes of text that does not compress well.
func noise(n int) string {
	b := make([]byte, n/2)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return hex.EncodeToString(b)
}

// Messages can hold any bytes. A dead letter that could not be stored would stop its
// pipeline.
func TestAnyDeadLetterCanBeStored(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	for name, change := range map[string]func(m *relay.Message){
		"id with NUL":           func(m *relay.Message) { m.ID = "a\x00" },
		"id not UTF-8":          func(m *relay.Message) { m.ID = "a\xff" },
		"long id":               func(m *relay.Message) { m.ID = noise(9000) },
		"id with many bytes":    func(m *relay.Message) { m.ID = strings.Repeat("\xff", 9000) },
		"key with NUL":          func(m *relay.Message) { m.Key = "a\x00" },
		"key not UTF-8":         func(m *relay.Message) { m.Key = "a\xff" },
		"long key":              func(m *relay.Message) { m.Key = noise(9000) },
		"key as long as may be": func(m *relay.Message) { m.Key = noise(2000) },
		"op":                    func(m *relay.Message) { m.Op = "\x00" },
		"subject":               func(m *relay.Message) { m.Subject = "\xff" },
		"content type":          func(m *relay.Message) { m.ContentType = "\x00" },
		"table":                 func(m *relay.Message) { m.StreamTable = "\xff" },
		"refresh id":            func(m *relay.Message) { m.RefreshID = "\x00" },
		"origin":                func(m *relay.Message) { m.Origin = "\xff" },
		"header":                func(m *relay.Message) { m.Headers = []relay.Header{{Name: "\x00", Value: "\xff"}} },
		"far future":            func(m *relay.Message) { m.Time = time.Date(400_000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"far past":              func(m *relay.Message) { m.Time = time.Date(-100_000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		t.Run(name, func(t *testing.T) {
			letter := engine.DeadLetter{Message: relay.Message{ID: name, Key: name, Body: []byte("x")}, Class: engine.ClassRefused, Reason: "a\x00\xff"}
			change(&letter.Message)
			raw := letter.Message.Key
			for range 2 { // a redelivery is the same dead letter
				commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{letter}})
			}
			keys, err := l.ParkedKeys(t.Context())
			if err != nil || len(keys) != 1 || keys[0] != l.Key(raw) || l.Key(keys[0]) != keys[0] {
				t.Errorf("ParkedKeys = %.300q, %v; want only %.300q", keys, err, l.Key(raw))
			}
			dlq(t, pool, `relay_dlq_retry('orders')`)
			_, letters := deliverable(t, l)
			if len(letters) != 1 || string(letters[0].Message.Row)+string(letters[0].Message.Body) != "x" || letters[0].Attempts != 2 {
				t.Fatalf("deliverable = %.900v, want one letter, tried twice", letters)
			}
			again := letters[0] // in its stored form it is the same dead letter, too
			again.Attempts = 1
			commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{again}})
			dlq(t, pool, `relay_dlq_retry('orders')`)
			_, letters = deliverable(t, l)
			if len(letters) != 1 || letters[0].ID != again.ID || letters[0].Attempts != 3 {
				t.Fatalf("deliverable = %.900v, want the one letter, tried three times", letters)
			}
			commit(t, l, engine.Commit{Redriven: []int64{letters[0].ID}})
			if ids, _ := deliverable(t, l); len(ids) > 0 {
				t.Errorf("deliverable after the redrive = %v, want none", ids)
			}
		})
	}
}

func TestKeysThatCannotBeStoredStayApart(t *testing.T) {
	t.Parallel()
	l := new(store.Ledger)
	long := noise(9000)
	raw := []string{"", "a", "Ærø", "a\uFFFD", "a\xff", "a\xfe", "a\x00", "a\x00\x00", long, long + "0", strings.Repeat("Æ", 5000), noise(2000)}
	var got []string
	for _, key := range raw {
		stored := l.Key(key)
		if len(stored) > 2000 || l.Key(stored) != stored || l.Key(key) != stored || slices.Contains(got, stored) {
			t.Errorf("Key(%.40q) = %q; want what is short, its own stored form, and no other key's", key, stored)
		}
		got = append(got, stored)
	}
	if want := raw[:4]; !slices.Equal(got[:4], want) || got[11] != raw[11] {
		t.Errorf("Key = %q, want %q as they are", got[:4], want)
	}
	if want := "a\uFFFD#sha256:"; !strings.HasPrefix(got[4], want) || len(got[4]) != len(want)+64 {
		t.Errorf("Key(%q) = %q, want %s and 64 digits", raw[4], got[4], want)
	}
}

func TestAnyStatusCanBeStored(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	if err := l.SetStatus(t.Context(), store.StatusFailed, "no such topic \"a\x00\xff\""); err != nil {
		t.Errorf("SetStatus = %v", err)
	}
}

func BenchmarkKey(b *testing.B) {
	l := new(store.Ledger)
	for b.Loop() {
		l.Key("customer-1071")
	}
}
