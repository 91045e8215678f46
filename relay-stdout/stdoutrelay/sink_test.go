package stdoutrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func event(n int, body string) relay.Message {
	return relay.Message{
		ID: fmt.Sprintf("outbox_orders:%d:0", n), Subject: "orders.insert", Key: "k", Op: "insert", OutboxID: int64(n),
		Body: []byte(body), Time: time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC),
	}
}

// A sink keeps the buffer of usual batches, and not that of a large one.
func TestLargeBufferIsNotKept(t *testing.T) {
	t.Parallel()
	s := openFile(t, sinkConfig{Path: filepath.Join(t.TempDir(), "out"), Format: "raw"})
	for size, kept := range map[int]bool{1 << 10: true, maxKeptBuffer + 1: false} {
		if err := s.Publish(t.Context(), []relay.Message{event(1, strings.Repeat("x", size))}); err != nil {
			t.Fatal(err)
		}
		if (s.buf != nil) != kept {
			t.Errorf("a buffer of %d bytes is kept after a body of %d", cap(s.buf), size)
		}
	}
}

// Each pipeline asks for its guarantee when it starts.
func TestGuaranteeTakesLittleMemory(t *testing.T) {
	s := openFile(t, sinkConfig{Path: filepath.Join(t.TempDir(), "out"), Format: "raw"})
	result := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			s.Guarantee()
		}
	})
	if n := result.AllocedBytesPerOp(); n > 16<<10 {
		t.Errorf("a guarantee takes %d bytes", n)
	}
}

func TestLayouts(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		format, body, want string
		permanent          bool
	}{
		"jsonl":                   {format: "jsonl", body: `{"a": 1}`, want: "{\"a\": 1}\n"},
		"jsonl over several":      {format: "jsonl", body: "{\n \"a\": \"x\\ny\"\r\n}", want: "{\"a\":\"x\\ny\"}\n"},
		"jsonl of something else": {format: "jsonl", body: "a\nb", permanent: true},
		"json_pretty":             {format: "json_pretty", body: `{"a":[1]}`, want: "{\n  \"a\": [\n    1\n  ]\n}\n"},
		"json_pretty of nothing":  {format: "json_pretty", body: `{`, permanent: true},
		"csv": {
			format: "csv", body: `{"a":"x,y"}`,
			want: csvHeader + `outbox_orders:1:0,orders.insert,insert,k,1,2026-11-22T18:00:00Z,"{""a"":""x,y""}"` + "\n",
		},
		"csv over several": {format: "csv", body: "[\n1]", want: csvHeader + `outbox_orders:1:0,orders.insert,insert,k,1,2026-11-22T18:00:00Z,"[1]"` + "\n"},
		"raw":              {format: "raw", body: "a\nb\x00", want: "a\nb\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "out")
			err := openFile(t, sinkConfig{Format: tc.format, Path: path}).Publish(t.Context(), []relay.Message{event(1, tc.body)})
			if tc.permanent {
				var partial *relay.BatchError
				if !errors.As(err, &partial) || !relay.IsPermanent(partial.Failed[0]) {
					t.Fatalf("Publish(%q) = %v, want a permanent error", tc.body, err)
				}
				return
			}
			got, _ := os.ReadFile(path)
			if err != nil || string(got) != tc.want {
				t.Fatalf("Publish(%q) = %v, wrote %q; want %q", tc.body, err, got, tc.want)
			}
		})
	}
}

// After a crash the position proves that the file is the pipeline's own. The sink cuts
// what follows the last whole message, and nothing before the position.
func TestTornEndIsCut(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ format, settled, after, want string }{
		"jsonl":               {"jsonl", "{\"a\":1}\n", "{\"b\":", ""},
		"jsonl whole":         {"jsonl", "{\"a\":1}\n", "{\"b\":2}\n", "{\"b\":2}\n"},
		"jsonl several":       {"jsonl", "{\"a\":1}\n", "{\"b\":2}\n{\"c\"", "{\"b\":2}\n"},
		"jsonl long":          {"jsonl", "{\"a\":1}\n", "\"" + strings.Repeat("x", 300_000), ""},
		"jsonl long, several": {"jsonl", "{\"a\":1}\n", "{\"b\":2}\n\"" + strings.Repeat("x", 300_000), "{\"b\":2}\n"},
		"jsonl in a line":     {"jsonl", "not ours", "\n{\"b\":", "\n"},
		"csv":                 {"csv", csvHeader, "a,b", ""},
		"pretty":              {"json_pretty", "{\n  \"a\": 1\n}\n", "{\n  \"b\": {\n  }\n", ""},
		"pretty scalar":       {"json_pretty", "1\n", "[\n  2,\n", ""},
		"pretty empty":        {"json_pretty", "{}\n", "{\n", ""},
		"raw":                 {"raw", "abc", "def", "def"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "out")
			appendTo(t, path, []byte(tc.settled))
			cfg := sinkConfig{Format: tc.format, Path: path}
			at, err := openFile(t, cfg).Position(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			appendTo(t, path, []byte(tc.after))
			if err := openFile(t, cfg).Resume(t.Context(), at, func(string) {}); err != nil {
				t.Fatal(err)
			}
			if got, _ := os.ReadFile(path); string(got) != tc.settled+tc.want {
				t.Fatalf("after resuming, the file is %.80q, want %q", got, tc.settled+tc.want)
			}
		})
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "out")
	s := openFile(t, sinkConfig{Format: "jsonl", Path: path, RotateBytes: 20, Keep: 2})
	for n := range 10 {
		if err := s.Publish(t.Context(), []relay.Message{event(n, fmt.Sprintf(`{"n":%d}`, n))}); err != nil {
			t.Fatal(err)
		}
	}
	for n, want := range []string{"{\"n\":8}\n{\"n\":9}\n", "{\"n\":6}\n{\"n\":7}\n", "{\"n\":4}\n{\"n\":5}\n"} {
		if got, _ := os.ReadFile(s.rotated(n)); string(got) != want {
			t.Errorf("%s holds %q, want %q", s.rotated(n), got, want)
		}
	}
	if exists(s.rotated(3)) {
		t.Error("keep is 2, and a third rotated file is there")
	}
}

func TestFileMovedAway(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "out")
	s := openFile(t, sinkConfig{Format: "jsonl", Path: path})
	for n := range 2 {
		if err := s.Publish(t.Context(), []relay.Message{event(n, `{}`)}); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path, fmt.Sprintf("%s.moved%d", path, n)); err != nil {
			t.Fatalf("the file was not begun again: %v", err)
		}
	}
}

// Resume finds what was written after a position, through rotation.
func TestResumeThroughRotation(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "out")
	cfg := sinkConfig{Format: "jsonl", Path: path, RotateBytes: 60}
	s := openFile(t, cfg)
	var at string
	for n := range 20 {
		if n == 10 {
			at, _ = s.Position(t.Context())
		}
		if err := s.Publish(t.Context(), []relay.Message{event(n, fmt.Sprintf(`{"dedup_key":"%d"}`, n))}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	if err := openFile(t, cfg).Resume(t.Context(), at, func(id string) { got = append(got, id) }); err != nil {
		t.Fatal(err)
	}
	want := []string{"10", "11", "12", "13", "14", "15", "16", "17", "18", "19"}
	slices.Sort(got) // any order will do
	if !slices.Equal(got, want) {
		t.Errorf("Resume(%s) saw %v, want %v", at, got, want)
	}
}

// A stranger's line hides no id but its own, wherever the reader's buffer ends.
func TestResumeBetweenStrangers(t *testing.T) {
	t.Parallel()
	strangers := map[string][]string{
		"jsonl":       {"hello", "{", "[1,", `{"dedup_key":`, "", "   ", `"open`},
		"json_pretty": {"hello", "{", "}", "[1,", "", `"whole"`},
		"csv":         {"hello", `"open`, `a "b" c`, "", `""`, `",`},
	}
	for format, lines := range strangers {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "out")
			s := openFile(t, sinkConfig{Format: format, Path: path})
			at, err := s.Position(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for n := range 400 {
				m := event(n, fmt.Sprintf(`{"dedup_key":"%d","payload":"%s"}`, n, strings.Repeat("x", n*37%3000)))
				m.ID = strconv.Itoa(n)
				if n%10 == 3 {
					m.ID = `a, "quoted" id ` + m.ID
					m.Body = fmt.Appendf(nil, `{"dedup_key":%q}`, m.ID)
				}
				if err := s.Publish(t.Context(), []relay.Message{m}); err != nil {
					t.Fatal(err)
				}
				want = append(want, m.ID)
				for range n % 3 { // one behind the other, too
					appendTo(t, path, []byte(strings.Repeat("z", n*53%700)+lines[n%len(lines)]+"\n"))
				}
				appendTo(t, path, []byte(lines[n%len(lines)]+"\n"))
			}
			ours := make(map[string]bool, len(want))
			for _, id := range want {
				ours[id] = true
			}
			var got []string
			err = openFile(t, sinkConfig{Format: format, Path: path}).Resume(t.Context(), at, func(id string) {
				if ours[id] {
					got = append(got, id)
				}
			})
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("Resume saw %d of %d ids, %v", len(got), len(want), err)
			}
		})
	}
}

// A full disk leaves no partial line, and is no reason to give a message up.
func TestDiskFull(t *testing.T) {
	if os.Getenv("STDOUTRELAY_TEST_FULL") != "" {
		diskFull(t)
		return
	}
	// The limit on file sizes stands in for the disk's; it holds for a process.
	cmd := exec.Command(os.Args[0], "-test.run=^TestDiskFull$")
	cmd.Env = append(os.Environ(), "STDOUTRELAY_TEST_FULL="+filepath.Join(t.TempDir(), "out"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func diskFull(t *testing.T) {
	path := os.Getenv("STDOUTRELAY_TEST_FULL")
	signal.Ignore(syscall.SIGXFSZ)
	limit := func(n uint64) {
		t.Helper()
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: 1 << 40}); err != nil {
			t.Fatal(err)
		}
	}
	s := openFile(t, sinkConfig{Format: "jsonl", Path: path})
	line := `{"n":"` + strings.Repeat("x", 90) + `"}`
	if err := s.Publish(t.Context(), []relay.Message{event(1, line)}); err != nil {
		t.Fatal(err)
	}
	batch := []relay.Message{event(2, line), event(3, line)}
	limit(250)
	for range 2 {
		err := s.Publish(t.Context(), batch)
		if err == nil || relay.IsPermanent(err) || relay.IsFatal(err) {
			t.Fatalf("Publish to a full disk = %v, want a transient error", err)
		}
		if got, _ := os.ReadFile(path); string(got) != line+"\n" {
			t.Fatalf("Publish to a full disk left %q", got)
		}
	}
	limit(1 << 30)
	if err := s.Publish(t.Context(), batch); err != nil {
		t.Fatalf("Publish after there is room again = %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != strings.Repeat(line+"\n", 3) {
		t.Fatalf("the file holds %q, want three lines", got)
	}
}

// Standard output cannot be taken back: a line that was cut is completed.
func TestStreamCompletesACutLine(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := openStream(t, newOutputs(w), "")
	line := `{"n":"` + strings.Repeat("x", 50_000) + `"}`
	batch := []relay.Message{event(1, line), event(2, line), event(3, line)}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var partial *relay.BatchError
	if err := s.Publish(ctx, batch); !errors.As(err, &partial) || len(partial.Failed) != 2 || partial.Failed[0] != nil {
		t.Fatalf("Publish to a full pipe = %v, want messages 1 and 2 failed", err)
	}
	all := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(r)
		all <- b
	}()
	if err := s.Publish(t.Context(), batch[1:]); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if got := string(<-all); got != strings.Repeat(line+"\n", 3) {
		t.Errorf("%d bytes came out, want three lines, %d bytes", len(got), 3*(len(line)+1))
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	if _, err := newSink(sinkConfig{Format: "jsonl", Path: filepath.Join(t.TempDir(), "no", "dir")}, nil); !relay.IsFatal(err) {
		t.Errorf("a path whose directory is missing = %v, want a fatal error", err)
	}
	if _, err := newSink(sinkConfig{Format: "jsonl", Path: t.TempDir()}, newOutputs(os.Stdout)); err == nil {
		t.Error("a directory as path = nil, want an error")
	}
	s, err := newSink(sinkConfig{Format: "jsonl", Path: "/dev/full"}, newOutputs(os.Stdout))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(t.Context(), []relay.Message{event(1, "{}")}); err == nil || relay.IsFatal(err) || relay.IsPermanent(err) {
		t.Errorf("Publish to /dev/full = %v, want a transient error", err)
	}
}

func BenchmarkStdout(b *testing.B) {
	for _, format := range []string{"jsonl", "csv"} {
		b.Run(format, func(b *testing.B) {
			s, err := newSink(sinkConfig{Format: format, Path: "/dev/null"}, newOutputs(os.Stdout))
			if err != nil {
				b.Fatal(err)
			}
			batch := make([]relay.Message, 1000)
			for i := range batch {
				batch[i] = event(i, `{"dedup_key":"outbox_orders:1:0","subject":"orders.insert","payload":{"id": 123456, "note": "`+strings.Repeat("x", 200)+`"},"op":"insert"}`)
			}
			b.ReportAllocs()
			for n := 0; n < b.N; n += len(batch) {
				if err := s.Publish(context.Background(), batch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestReadBackLongLines: a line may be larger than memory. Resume finds its id in front of
// the row, and those of the lines behind it, and holds a few MiB of it.
func TestReadBackLongLines(t *testing.T) { // measures allocations, so not in parallel
	pad := strings.Repeat("x", 64<<20)
	for format, lines := range map[string]string{
		"jsonl": `{"dedup_key":"a","subject":"s","payload":{"x":"` + pad + "\"}}\n" +
			`{"specversion":"1.0","id":"b","source":"s","data":"` + pad + "\"}\n" + `{"dedup_key":"c","payload":{}}` + "\n{\"dedup_key\":\"torn\",\"payload\":\"" + pad,
		"csv": `a,s,insert,k,1,,"` + pad + "\"\n" + `"b",s,insert,k,1,,"` + pad + "\"\nc,s,insert,k,1,,\"\"\ntorn,\"" + pad,
	} {
		path := filepath.Join(t.TempDir(), "out")
		appendTo(t, path, []byte("{}\n"))
		cfg := sinkConfig{Format: format, Path: path}
		at, err := openFile(t, cfg).Position(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		appendTo(t, path, []byte(lines))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var ids []string
		if err := openFile(t, cfg).Resume(t.Context(), at, func(id string) { ids = append(ids, id) }); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if got := strings.Join(ids, " "); got != "a b c" {
			t.Errorf("%s: ids %s, want a b c", format, got)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
			t.Errorf("%s: reading back took %d bytes", format, n)
		}
	}
}
