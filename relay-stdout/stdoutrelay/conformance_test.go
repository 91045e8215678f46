package stdoutrelay

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func TestFileSink(t *testing.T) {
	for _, format := range []string{"jsonl", "json_pretty", "csv"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			relaytest.TestSink(t, relaytest.SinkHarness{
				JSONOnly: true, NoHeaders: true,
				Refuse: func(_ testing.TB, m *relay.Message) { m.Body = []byte("not\nJSON") },
				New:    func(t testing.TB) relaytest.SinkCase { return fileCase(t, format) },
			})
		})
	}
}

func fileCase(t testing.TB, format string) relaytest.SinkCase {
	path := filepath.Join(t.TempDir(), "out")
	return relaytest.SinkCase{
		Open: func(t testing.TB) relay.Sink {
			return wrapping{openFile(t, sinkConfig{Format: format, Path: path, RotateBytes: 1 << 20})}
		},
		Read: func(t testing.TB, n int) []relay.Message { return readFiles(t, path, format, n) },
		Foreign: func(t testing.TB) {
			line := "a stranger's line, \"with quotes\"\n"
			if format == "json_pretty" {
				line = "\"a stranger\"\n"
			}
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteString(line); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func openFile(t testing.TB, cfg sinkConfig) *file {
	t.Helper()
	s, err := newSink(cfg, nil)
	if err != nil {
		t.Fatalf("newSink(%+v) = %v", cfg, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.(*file)
}

func TestPipeSink(t *testing.T) {
	for _, kind := range []string{"named", "pollable", "blocking"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			relaytest.TestSink(t, relaytest.SinkHarness{
				JSONOnly: true, NoHeaders: true,
				Refuse: func(_ testing.TB, m *relay.Message) { m.Body = []byte("not\nJSON") },
				New:    func(t testing.TB) relaytest.SinkCase { return pipeCase(t, kind) },
			})
		})
	}
}

// pipeCase is a pipe whose reader keeps up, also while no sink is open.
func pipeCase(t testing.TB, kind string) relaytest.SinkCase {
	end := openFarEnd(t, kind)
	if end.path != "" {
		w, err := os.OpenFile(end.path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = w.Close() })
	}
	lines := make(chan []byte, 10_000)
	go func() {
		for in := bufio.NewReader(end.r); ; {
			line, err := in.ReadBytes('\n')
			if err != nil {
				return
			}
			lines <- line
		}
	}()
	var got []relay.Message
	return relaytest.SinkCase{
		Open: func(t testing.TB) relay.Sink { return enveloping{openStream(t, end.outs, end.path)} },
		Read: func(t testing.TB, n int) []relay.Message {
			for len(got) < n || len(lines) > 0 {
				select {
				case line := <-lines:
					got = append(got, unwrap(t, line))
				case <-time.After(relaytest.Patience()):
					t.Fatalf("%d messages came out, want %d", len(got), n)
				}
			}
			return got
		},
	}
}

func unwrap(t testing.TB, line []byte) relay.Message {
	var m struct {
		DedupKey string `json:"dedup_key"`
		Payload  json.RawMessage
	}
	if err := json.Unmarshal(line, &m); err != nil {
		t.Fatalf("%.100q came out: %v", line, err)
	}
	return relay.Message{ID: m.DedupKey, Body: m.Payload}
}

// enveloping is wrapping for a sink that is not a file.
type enveloping struct{ *stream }

func (e enveloping) Publish(ctx context.Context, batch []relay.Message) error {
	return e.stream.Publish(ctx, enveloped(batch))
}

func enveloped(batch []relay.Message) []relay.Message {
	out := make([]relay.Message, len(batch))
	for i, m := range batch {
		if s := m.Payload.Stream; s != nil {
			around := *s
			around.Before, around.After = fmt.Appendf(nil, `{"dedup_key":%q,"payload":`, m.ID), []byte("}")
			m.Payload.Stream = &around
		}
		m.Body = fmt.Appendf(nil, `{"dedup_key":%q,"payload":%s}`, m.ID, m.Body)
		out[i] = m
	}
	return out
}

// wrapping puts bodies into envelopes, as the engine does, because a file has no
// other place for an id.
type wrapping struct{ *file }

func (w wrapping) Publish(ctx context.Context, batch []relay.Message) error {
	if w.cfg.Format == "csv" {
		return w.file.Publish(ctx, batch)
	}
	return w.file.Publish(ctx, enveloped(batch))
}

// readFiles reads path and what was rotated away from it, oldest first.
func readFiles(t testing.TB, path, format string, n int) (got []relay.Message) {
	t.Helper()
	var all []byte
	oldest := 0
	f := &file{cfg: sinkConfig{Path: path}}
	for exists(f.rotated(oldest + 1)) {
		oldest++
	}
	for k := oldest; k >= 0; k-- {
		b, err := os.ReadFile(f.rotated(k))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	if format == "csv" {
		r := csv.NewReader(bytes.NewReader(all))
		r.FieldsPerRecord, r.LazyQuotes = -1, true
		rows, err := r.ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			if len(row) == 7 && row[0] != "dedup_key" {
				got = append(got, relay.Message{ID: row[0], Subject: row[1], Op: row[2], Key: row[3], Body: []byte(row[6])})
			}
		}
	} else {
		for dec := json.NewDecoder(bytes.NewReader(all)); dec.More(); {
			var m struct {
				DedupKey string `json:"dedup_key"`
				Payload  json.RawMessage
			}
			var raw json.RawMessage
			if err := dec.Decode(&raw); err != nil {
				t.Fatalf("%s holds what is not JSON: %v", path, err)
			}
			if json.Unmarshal(raw, &m) == nil {
				got = append(got, relay.Message{ID: m.DedupKey, Body: m.Payload})
			}
		}
	}
	if len(got) < n {
		t.Fatalf("%s holds %d messages, want %d", path, len(got), n)
	}
	return got
}

func TestFileSource(t *testing.T) {
	relaytest.TestSource(t, relaytest.SourceHarness{
		UTF8Only: true, NoHeaders: true, NoEmpty: true,
		New: func(t testing.TB) relaytest.SourceCase {
			path := filepath.Join(t.TempDir(), "in")
			return relaytest.SourceCase{
				Open: func(t testing.TB, at relay.Checkpoint) relay.Source {
					return unwrapping{openFileSource(t, sourceConfig{Path: path, Follow: true, MaxLine: 16 << 20}, at)}
				},
				Feed: func(t testing.TB, batch []relay.Message) {
					var lines []byte
					for i := range batch {
						lines = fmt.Appendf(lines, "{\"dedup_key\":%q,\"headers\":%s,\"payload\":%s}\n", batch[i].ID, "{}", batch[i].Body)
					}
					appendTo(t, path, lines)
				},
				FeedForeign: func(t testing.TB, body []byte) { appendTo(t, path, append(body, '\n')) },
			}
		},
	})
}

func TestStdinSource(t *testing.T) {
	relaytest.TestSource(t, relaytest.SourceHarness{
		UTF8Only: true, NoHeaders: true, NoRedelivery: true, NoEmpty: true,
		New: func(t testing.TB) relaytest.SourceCase {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = w.Close() })
			in := newStdin(r)
			return relaytest.SourceCase{
				Open: func(testing.TB, relay.Checkpoint) relay.Source { return unwrapping{in.open(sourceDefaults())} },
				Feed: func(t testing.TB, batch []relay.Message) {
					go func() { // a pipe is small
						for i := range batch {
							_, _ = fmt.Fprintf(w, "{\"dedup_key\":%q,\"payload\":%s}\n", batch[i].ID, batch[i].Body)
						}
					}()
				},
			}
		},
	})
}

// unwrapping takes bodies out of envelopes, as the engine does.
type unwrapping struct{ relay.Source }

func (u unwrapping) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	batch, err := u.Source.Receive(ctx, limit)
	for i := range batch {
		var m struct {
			DedupKey string `json:"dedup_key"`
			Payload  json.RawMessage
		}
		if json.Unmarshal(batch[i].Body, &m) == nil && m.DedupKey != "" {
			batch[i].ID, batch[i].Body = m.DedupKey, m.Payload
		}
	}
	return batch, err
}

func (u unwrapping) Checkpoint(batch []relay.Message) (relay.Checkpoint, error) {
	if cp, ok := u.Source.(relay.Checkpointer); ok {
		return cp.Checkpoint(batch)
	}
	return relay.Checkpoint{}, u.Ack(context.Background(), batch)
}

func (u unwrapping) Committed(context.Context, relay.Checkpoint) error { return nil }

func env(at relay.Checkpoint) relay.Env {
	return relay.Env{Pipeline: "orders", Identity: relaytest.Identity, Logger: slog.New(slog.DiscardHandler), Checkpoint: at}
}

func openFileSource(t testing.TB, cfg sourceConfig, at relay.Checkpoint) *fileSource {
	t.Helper()
	s, err := newFileSource(cfg, env(at))
	if err != nil {
		t.Fatalf("newFileSource(%+v) = %v", cfg, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func appendTo(t testing.TB, path string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
}

func withTimeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
