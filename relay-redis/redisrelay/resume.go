package redisrelay

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	// pageBytes is about what one page of a stream may hold in memory.
	pageBytes = 4 << 20
	// clockSlack is by how much the clocks of a cluster's nodes may differ.
	clockSlack = time.Minute
	// maxStreams keeps a position below the 64 KiB that the engine allows.
	maxStreams = 400
)

// stream is what the sink knows of one stream.
type stream struct {
	name  string
	arg   any    // name, boxed once
	known bool   // tail was read from the server, or needs not be
	tail  string // id of the last entry that is known
	last  *entry // of the transaction at hand

	refused error // permanent: load found that the key is no stream
}

// tails is where each stream that the sink has written ends.
type tails struct {
	streams map[string]*stream
	table   string // the pipeline's stream table, to guess at further streams
	since   int64  // milliseconds of the server's clock
	text    string // the rendered position, "" after a change
}

// position is the tails as they are stored. Streams that are not listed were
// not written before Since.
type position struct {
	Since   int64             `json:"since"`
	Table   string            `json:"table,omitempty"`
	Streams map[string]string `json:"streams"`
}

func (t *tails) get(name []byte) *stream {
	if st := t.streams[string(name)]; st != nil {
		return st
	}
	if t.streams == nil {
		t.streams = make(map[string]*stream)
	}
	st := &stream{name: string(name), tail: "0-0"}
	st.arg = st.name
	t.streams[st.name] = st
	t.text = ""
	return st
}

// load reads the tails of streams that are new. It finds out in passing that
// each is a stream and may be read, before anything is added. What classify makes
// permanent is kept with the stream, which stays new.
func (t *tails) load(ctx context.Context, client redis.UniversalClient, classify func(error) error) error {
	var fresh []*stream
	for _, st := range t.streams {
		if !st.known {
			fresh = append(fresh, st)
		}
	}
	pipe := client.Pipeline()
	replies := make([]*redis.XMessageSliceCmd, len(fresh))
	for i, st := range fresh {
		replies[i] = pipe.XRevRangeN(ctx, st.name, "+", "-", 1)
	}
	_, execErr := pipe.Exec(ctx)
	for i, st := range fresh {
		last, err := replies[i].Result()
		if err != nil {
			err = classify(fmt.Errorf("read the end of stream %q: %w", st.name, err))
		}
		st.refused = nil
		switch {
		case relay.IsPermanent(err):
			st.refused = err
			continue
		case err != nil:
			return err
		}
		if len(last) > 0 {
			st.tail = last[0].ID
			t.observe(st.tail)
		}
		st.known, t.text = true, ""
	}
	if isReply(execErr) {
		return nil // kept with its stream
	}
	return execErr
}

// settle takes over the ids of the entries just added.
func (t *tails) settle() {
	for _, st := range t.streams {
		if st.last != nil {
			st.tail = string(st.last.cmd.Bytes())
			st.last, st.known, t.text = nil, true, ""
			t.observe(st.tail)
		}
	}
}

// observe keeps the server's clock, which entry ids hold.
func (t *tails) observe(id string) {
	ms, _ := splitID(id)
	t.since = max(t.since, int64(ms))
}

func (t *tails) now() time.Time {
	if now := time.Now(); t.since == 0 || now.UnixMilli() > t.since {
		return now
	}
	return time.UnixMilli(t.since)
}

// Position implements [relay.Resumer].
func (s *sink) Position(ctx context.Context) (string, error) {
	if !s.cfg.Resume {
		return "", nil
	}
	if s.tails.since == 0 {
		if s.cfg.Stream.Fixed() {
			s.tails.get([]byte(s.cfg.Stream.Pattern("", "")))
			if err := s.tails.load(ctx, s.client, s.classify); err != nil {
				return "", err
			}
		}
		now, err := s.client.Time(ctx).Result()
		if err != nil {
			return "", classify(fmt.Errorf("ask for the server's time: %w", err))
		}
		s.tails.since = max(s.tails.since, now.UnixMilli())
	}
	if s.tails.text == "" {
		p := position{Since: s.tails.since, Table: s.tails.table, Streams: make(map[string]string)}
		if len(s.tails.streams) <= maxStreams {
			for _, st := range s.tails.streams {
				if st.known {
					p.Streams[st.name] = st.tail
				}
			}
		}
		text, err := json.Marshal(p)
		if err != nil {
			return "", err
		}
		s.tails.text = string(text)
	}
	return s.tails.text, nil
}

// Resume implements [relay.Resumer].
func (s *sink) Resume(ctx context.Context, from string, seen func(id string)) error {
	var p position
	if err := json.Unmarshal([]byte(from), &p); err != nil {
		return relay.Fatal(fmt.Errorf("position %q is not a Redis sink's: %w", from, err))
	}
	since := time.UnixMilli(p.Since).Add(-clockSlack)
	start := strconv.FormatInt(max(0, since.UnixMilli()), 10)
	names, err := s.candidates(ctx, p)
	if err != nil {
		return err
	}
	for _, name := range names {
		after, listed := p.Streams[name]
		if !listed {
			after = start
		}
		st := s.tails.get([]byte(name))
		st.tail = after
		err := scan(ctx, s.client, name, after, func(e written) {
			st.tail = e.entry
			if e.event != "" && s.env.Wrote(e.pipeline) {
				seen(e.event)
			}
		})
		if relay.IsPermanent(s.classify(err)) {
			s.env.Logger.Error("stream can no longer be read", "stream", name, "confirmed", after, "err", err)
			continue
		}
		if err != nil {
			return err
		}
		st.known = st.tail != start // else load finds its end
		s.tails.observe(st.tail)
		if err := s.checkLoss(ctx, st, after, listed); err != nil {
			return err
		}
	}
	s.tails.table, s.tails.text = p.Table, ""
	return nil
}

// checkLoss logs an error if a stream ends before the position. A failover, or a
// restart without persistence, has then lost entries that Redis had confirmed.
func (s *sink) checkLoss(ctx context.Context, st *stream, after string, listed bool) error {
	if !listed || after == "0-0" || st.tail != after {
		return nil
	}
	last, err := s.client.XRevRangeN(ctx, st.name, "+", "-", 1).Result()
	if err != nil {
		return classify(fmt.Errorf("read the end of stream %q: %w", st.name, err))
	}
	if len(last) == 0 || idLess(last[0].ID, after) {
		s.env.Logger.Error("confirmed entries are gone", "stream", st.name, "confirmed", after,
			"cause", "Redis lost them in a failover or restart, or they were trimmed or deleted")
	}
	return nil
}

// candidates lists the streams that the last owner may have written. These are the
// streams of the position, and those that the template makes of the pipeline's table.
// Where the template looks into rows, they are all streams that fit it.
func (s *sink) candidates(ctx context.Context, p position) ([]string, error) {
	names := make(map[string]bool)
	for name := range p.Streams {
		names[name] = true
	}
	t := s.cfg.Stream
	if t.PerMessage() || !t.Fixed() && p.Table == "" {
		err := s.search(ctx, t.Pattern("*", special), names)
		return slices.Sorted(maps.Keys(names)), err
	}
	for _, op := range []string{relay.OpInsert, relay.OpUpdate, relay.OpDelete, relay.OpEvent, relay.OpSnapshotEnd} {
		name, err := t.Render(&relay.Message{StreamTable: p.Table, Op: op})
		if err != nil {
			return nil, err
		}
		names[name] = true
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// special are the characters that mean something in a pattern of SCAN.
const special = `*?[]\^-`

// search adds the names of the streams that fit pattern. It walks over all keys,
// in small steps.
func (s *sink) search(ctx context.Context, pattern string, names map[string]bool) error {
	found := make(chan string)
	walk := func(ctx context.Context, c *redis.Client) error {
		keys := c.ScanType(ctx, 0, pattern, 1000, "stream").Iterator()
		for keys.Next(ctx) {
			found <- keys.Val()
		}
		return keys.Err()
	}
	done := make(chan error, 1)
	go func() {
		defer close(found)
		switch c := s.client.(type) {
		case *redis.ClusterClient:
			done <- c.ForEachMaster(ctx, walk)
		case *redis.Client:
			done <- walk(ctx, c)
		}
	}()
	for name := range found {
		names[name] = true
	}
	if err := <-done; err != nil {
		return classify(fmt.Errorf("search for streams %q: %w", pattern, err))
	}
	return nil
}

// written identifies an entry, its event and the pipeline that wrote it; "" if unknown.
type written struct{ entry, event, pipeline string }

// scan reads a stream behind after, in pages of bounded size, and calls visit for each
// entry.
func scan(ctx context.Context, client redis.UniversalClient, name, after string, visit func(written)) error {
	count := int64(16)
	for {
		page, err := client.XRangeN(ctx, name, "("+after, "+", count).Result()
		if err != nil {
			return classify(fmt.Errorf("read stream %q behind %s: %w", name, after, err))
		}
		bytes := 1
		for _, x := range page {
			for field, value := range x.Values {
				text, _ := value.(string)
				bytes += len(field) + len(text)
			}
			event, _ := x.Values[fieldID].(string)
			pipeline, _ := x.Values[fieldPipeline].(string)
			visit(written{x.ID, event, pipeline})
			after = x.ID
		}
		if int64(len(page)) < count {
			return nil
		}
		count = min(10_000, max(1, int64(pageBytes/(bytes/len(page)+1))), 4*count)
	}
}

// idLess compares entry ids.
func idLess(a, b string) bool {
	ams, aseq := splitID(a)
	bms, bseq := splitID(b)
	return ams < bms || (ams == bms && aseq < bseq)
}

func splitID(id string) (ms, seq uint64) {
	left, right, _ := strings.Cut(id, "-")
	ms, _ = strconv.ParseUint(left, 10, 64)
	seq, _ = strconv.ParseUint(right, 10, 64)
	return ms, seq
}
