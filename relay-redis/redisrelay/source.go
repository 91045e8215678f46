package redisrelay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// trimCheck is how often a source that may not run scripts looks for entries that were
// trimmed before it read them.
const trimCheck = 200 * time.Millisecond

// source reads a stream as one consumer of a group. Reads have a client of their
// own. So a read that waits at the server can be cancelled by closing its connection,
// and no acknowledgement waits for it.
type source struct {
	cfg    sourceConfig
	env    relay.Env
	reader redis.UniversalClient
	dialer relaynet.Dialer // of reader
	acker  redis.UniversalClient

	// pending is whether the consumer's own unacknowledged entries are to be read, from
	// cursor on. So it is at the start, and after a read that failed, as its answer may
	// have been on its way.
	pending   bool
	cursor    string
	last      string // the highest id that a read returned, "0" without one
	ready     bool
	farEnds   *relay.FarEnds
	claimAt   time.Time
	claimFrom string
	reported  string // the last note, or position with a loss, that was reported
	plain     bool   // the user may not run scripts
	most      int    // entries of a read, after a larger reply was refused; 0: no limit
	trimAt    time.Time

	mu       sync.Mutex
	scope    string              // of the stream's present life, in ids
	inFlight map[string]struct{} // delivered and not acknowledged
}

// token is what Ack needs of a message.
type token struct{ id, scope string }

func newSource(ctx context.Context, env relay.Env, cfg sourceConfig) (*source, error) {
	cfg.Group = cmp.Or(cfg.Group, "pgtrickle:"+env.Group+":"+env.Pipeline)
	farEnds, err := relay.RecallFarEnds(env, cfg.OnRecreated)
	if err != nil {
		return nil, err
	}
	s := &source{cfg: cfg, env: env, farEnds: farEnds, claimFrom: "-", inFlight: make(map[string]struct{})}
	acker, err := newClients(env, &cfg.connConfig, new(relaynet.Dialer), 2)
	if err != nil {
		return nil, err
	}
	reader, err := newClients(env, &cfg.connConfig, &s.dialer, 1)
	if err != nil {
		return nil, err
	}
	s.acker, s.reader = acker(), reader()
	if err = s.Ping(ctx); err == nil {
		err = s.prepare(ctx)
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// prepare makes sure that the group is there and is the one that the pipeline knows. It
// starts with what this consumer was given before and did not acknowledge.
func (s *source) prepare(ctx context.Context) error {
	if err := s.discardClosed(ctx); err != nil {
		return err
	}
	life, err := s.meet(ctx)
	if err != nil {
		return err
	}
	if life.Pending {
		err := s.acker.XGroupDestroy(ctx, s.cfg.Stream, s.cfg.Group).Err()
		if err != nil && !strings.Contains(err.Error(), "requires the key to exist") {
			return classify(fmt.Errorf("remove group %q of stream %q: %w", s.cfg.Group, s.cfg.Stream, err))
		}
	}
	// A group that is known and was just there is not created: if it has gone since, the
	// next read reports that.
	if life.Pending || !s.farEnds.Knows(s.farEnd()) {
		if err := s.createGroup(ctx, life.Pending); err != nil {
			return classify(fmt.Errorf("create group %q of stream %q: %w", s.cfg.Group, s.cfg.Stream, err))
		}
	}
	if !s.farEnds.Knows(s.farEnd()) { // not before there is a group, or the next source would miss it
		if life, err = s.farEnds.Meet(ctx, "stream", s.farEnd(), ""); err != nil {
			return err
		}
	}
	s.mu.Lock()
	if scope := life.Scope(); scope != s.scope {
		s.scope, s.reported = scope, ""
		clear(s.inFlight)
	}
	s.mu.Unlock()
	s.ready, s.pending, s.cursor, s.last = true, true, "0", "0"
	s.trimAt = time.Time{}
	return s.farEnds.Began(ctx, s.farEnd())
}

// discardClosed uses both of the reader's connections, of which one is for transactions. A
// read that is cancelled closes both, and the client would use the idle one once more.
func (s *source) discardClosed(ctx context.Context) error {
	ping := func(p redis.Pipeliner) error { return p.Ping(ctx).Err() }
	_, err := s.reader.Pipelined(ctx, ping)
	if err == nil || errors.Is(err, net.ErrClosed) {
		err = s.reader.Ping(ctx).Err()
	}
	if err == nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return classify(fmt.Errorf("connect to Redis: %w", err))
}

// createGroup creates the stream, too, if there is none. The group gets the number of entries
// before its beginning: only then does it count what was removed unread.
func (s *source) createGroup(ctx context.Context, fromBeginning bool) error {
	start, before := s.cfg.StartID, int64(-1)
	if fromBeginning {
		start = "0"
	}
	info, err := s.acker.XInfoStream(ctx, s.cfg.Stream).Result()
	switch {
	case err != nil && strings.Contains(err.Error(), "no such key"):
		before = 0
	case err != nil || info.EntriesAdded == 0: // not allowed, or Redis before 7.0
	case start == "0":
		before = info.EntriesAdded - info.Length
	case start == "$":
		start, before = info.LastGeneratedID, info.EntriesAdded
	}
	args := []any{"XGROUP", "CREATE", s.cfg.Stream, s.cfg.Group, start, "MKSTREAM"}
	if before >= 0 {
		err = s.acker.Do(ctx, append(args, "ENTRIESREAD", before)...).Err()
	}
	if before < 0 || isReply(err) && !redis.HasErrorPrefix(err, "BUSYGROUP") { // Redis 6.2 has no ENTRIESREAD
		err = s.acker.Do(ctx, args...).Err()
	}
	if redis.HasErrorPrefix(err, "BUSYGROUP") {
		return nil
	}
	return err
}

// farEnd is the name under which the pipeline knows the group.
func (s *source) farEnd() string { return s.cfg.Stream + "/" + s.cfg.Group }

// meet returns what the pipeline knows of the group. Redis gives a stream no identity.
// But a group does not vanish without its stream, or without being removed.
func (s *source) meet(ctx context.Context) (relay.FarEnd, error) {
	if !s.farEnds.Knows(s.farEnd()) {
		return relay.FarEnd{First: true}, nil
	}
	life, err := s.farEnds.Meet(ctx, "stream", s.farEnd(), "")
	if err != nil || life.Pending {
		return life, err
	}
	if _, err := s.group(ctx, "0", 1, -1); redis.HasErrorPrefix(err, "NOGROUP") {
		return s.farEnds.Lost(ctx, "stream", s.farEnd(), "its consumer group is gone: the stream or the group was deleted")
	} else if err != nil {
		return life, err
	}
	return life, nil
}

// Receive implements [relay.Source].
func (s *source) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		asked := min(limit, cmp.Or(s.most, limit))
		entries, own, err := s.read(ctx, asked)
		if relaynet.IsTooLarge(err) && asked > 1 && ctx.Err() == nil {
			s.most = asked / 2
			continue
		}
		if s.most++; s.most == 1 || s.most >= limit { // there was no limit, or is none now
			s.most = 0
		}
		if err != nil || ctx.Err() != nil { // the connections may be closed
			s.ready = false
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, err
		}
		batch, err := s.take(ctx, entries, own)
		if err != nil { // what is gone stays pending, and is met again
			s.ready = false
		}
		if len(batch) > 0 {
			return batch, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// read gets some entries from where the next ones are: the consumer's own
// pending ones, others' abandoned ones, new ones. own is what was in flight
// before, if any of it can be among the entries.
func (s *source) read(ctx context.Context, limit int) (entries []redis.XMessage, own map[string]struct{}, err error) {
	defer s.dialer.CutAfter(ctx, 0)()
	if !s.ready {
		if err := s.prepare(ctx); err != nil {
			return nil, nil, err
		}
	}
	if s.pending {
		own := s.snapshot()
		entries, err := s.group(ctx, s.cursor, limit, -1)
		if len(entries) == 0 {
			s.pending = err != nil
			return nil, nil, err
		}
		s.cursor = entries[len(entries)-1].ID
		if s.last == "0" || idLess(s.last, s.cursor) {
			s.last = s.cursor
		}
		return entries, own, err
	}
	idle := s.cfg.ClaimIdle.D()
	if idle > 0 && !time.Now().Before(s.claimAt) {
		own := s.snapshot()
		entries, err := s.claim(ctx, limit, idle)
		if relaynet.IsTooLarge(err) {
			s.pending, s.cursor = true, "0"
		}
		return entries, own, err
	}
	block := s.cfg.Block.D()
	if idle > 0 {
		block = max(time.Millisecond, min(block, time.Until(s.claimAt)))
	}
	entries, err = s.fresh(ctx, limit, block)
	switch {
	case len(entries) > 0:
		s.last = entries[len(entries)-1].ID
	case relaynet.IsTooLarge(err): // what the server sent is pending
		s.pending, s.cursor = true, s.last
	}
	return entries, nil, err
}

// fresh reads new entries, and waits for them for as long as block.
func (s *source) fresh(ctx context.Context, limit int, block time.Duration) ([]redis.XMessage, error) {
	if s.plain {
		if err := s.checkTrimmed(ctx); err != nil || s.pending {
			return nil, err
		}
		return s.group(ctx, ">", limit, block)
	}
	g, err := s.readGuarded(ctx, limit)
	if redis.HasErrorPrefix(err, "EXECABORT") { // it does not name the command that was refused
		err = cmp.Or(s.reader.Eval(ctx, "return 1", nil).Err(), err)
	}
	if mayNotScript(err) || err == nil && g.position == "" {
		s.mayNotLook(cmp.Or(err, errors.New("the user may not run XINFO")))
		return g.entries, nil
	}
	if err != nil {
		return nil, classify(fmt.Errorf("read stream %q as group %q: %w", s.cfg.Stream, s.cfg.Group, err))
	}
	for _, note := range g.notes {
		if err := s.reportNote(ctx, note); err != nil {
			return nil, err // the entries are pending, and come again
		}
	}
	if len(g.entries) > 0 {
		return g.entries, nil
	}
	if met, err := s.meetEnd(ctx, g.last, g.position); met || err != nil {
		return nil, err
	}
	// XREAD moves no position: it only wakes the next script.
	err = s.reader.XRead(ctx, &redis.XReadArgs{Streams: []string{s.cfg.Stream, g.position}, Count: 1, Block: block}).Err()
	if mayNotScript(err) {
		s.mayNotLook(err)
	} else if err != nil && !errors.Is(err, redis.Nil) {
		return nil, classify(fmt.Errorf("wait for entries of stream %q: %w", s.cfg.Stream, err))
	}
	return nil, nil
}

func (s *source) group(ctx context.Context, from string, limit int, block time.Duration) ([]redis.XMessage, error) {
	streams, err := s.reader.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: s.cfg.Group, Consumer: s.cfg.Consumer, Streams: []string{s.cfg.Stream, from}, Count: int64(limit), Block: block,
	}).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, classify(fmt.Errorf("read stream %q as group %q: %w", s.cfg.Stream, s.cfg.Group, err))
	}
	if len(streams) == 0 {
		return nil, nil
	}
	return streams[0].Messages, nil
}

// claim takes over a page of what any consumer has left for too long.
func (s *source) claim(ctx context.Context, limit int, idle time.Duration) (entries []redis.XMessage, err error) {
	var gone []string
	var next string
	if s.plain {
		entries, next, gone, err = s.reader.XAutoClaimWithDeleted(ctx, &redis.XAutoClaimArgs{
			Stream: s.cfg.Stream, Group: s.cfg.Group, Consumer: s.cfg.Consumer, MinIdle: idle, Start: s.claimFrom, Count: int64(limit),
		}).Result()
	} else if entries, gone, next, err = s.claimIdle(ctx, limit, idle); mayNotScript(err) {
		s.mayNotLook(err)
		return nil, nil
	}
	if err != nil {
		return nil, classify(fmt.Errorf("claim abandoned entries of stream %q: %w", s.cfg.Stream, err))
	}
	if s.claimFrom = next; next == "" || next == "0-0" {
		s.claimFrom, s.claimAt = "-", time.Now().Add(idle/2)
	}
	s.mu.Lock()
	gone = slices.DeleteFunc(gone, func(id string) bool { _, ok := s.inFlight[id]; return ok }) // received before
	s.mu.Unlock()
	return entries, s.forget(ctx, gone)
}

// take turns entries into messages, passing over those that are in flight
// already, and forgets pending entries whose data is gone.
func (s *source) take(ctx context.Context, entries []redis.XMessage, own map[string]struct{}) ([]relay.Message, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	batch := make([]relay.Message, 0, len(entries))
	tokens := make([]token, 0, len(entries))
	var gone []string
	s.mu.Lock()
	for i := range entries {
		x := &entries[i]
		_, before := own[x.ID]
		_, now := s.inFlight[x.ID]
		switch {
		case before || now:
		case x.Values == nil:
			gone = append(gone, x.ID)
		default:
			s.inFlight[x.ID] = struct{}{}
			tokens = append(tokens, token{x.ID, s.scope})
			batch = append(batch, s.message(x))
			batch[len(batch)-1].Token = &tokens[len(tokens)-1]
		}
	}
	s.mu.Unlock()
	return batch, s.forget(ctx, gone)
}

// message translates an entry.
func (s *source) message(x *redis.XMessage) relay.Message {
	m := relay.Message{
		Op:     relay.OpEvent,
		Origin: "redis:" + s.cfg.Stream,
		Time:   entryTime(x.ID),
	}
	payload, ours := x.Values[fieldPayload]
	if !ours {
		m.ContentType = "application/json"
		m.Body, m.Err = objectOf(x)
	}
	for field, value := range x.Values {
		text, _ := value.(string)
		switch field {
		case fieldPayload:
			m.Body = []byte(payload.(string))
		case fieldID:
			m.ID = text
		case fieldSubject:
			m.Subject = text
		case fieldOp:
			m.Op = cmp.Or(text, relay.OpEvent)
		default:
			if ours {
				m.AddWireHeader(strings.TrimPrefix(field, headerPrefix), text)
			}
		}
	}
	m.ID = cmp.Or(m.ID, "redis:"+s.cfg.Stream+s.scope+":"+x.ID)
	m.Subject = cmp.Or(m.Subject, s.cfg.Stream)
	return m
}

// objectOf makes a JSON object of an entry that has no field payload.
func objectOf(x *redis.XMessage) ([]byte, error) {
	var invalid error
	for field, value := range x.Values {
		if text, _ := value.(string); !utf8.ValidString(text) || !utf8.ValidString(field) {
			invalid = fmt.Errorf("entry %s has no field %q, and its field %q is not text", x.ID, fieldPayload, field)
		}
	}
	body, err := json.Marshal(x.Values)
	return body, cmp.Or(invalid, err)
}

func entryTime(id string) time.Time {
	ms, _ := splitID(id)
	return time.UnixMilli(int64(ms))
}

func (s *source) snapshot() map[string]struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.inFlight)
}

// Ack implements [relay.Source].
func (s *source) Ack(ctx context.Context, batch []relay.Message) error {
	ids := make([]string, 0, len(batch))
	s.mu.Lock()
	for i := range batch {
		if t := batch[i].Token.(*token); t.scope == s.scope { // an older life may have had the same ids
			ids = append(ids, t.id)
		}
	}
	s.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	if err := s.acker.XAck(ctx, s.cfg.Stream, s.cfg.Group, ids...).Err(); err != nil {
		return classify(fmt.Errorf("acknowledge %d entries of stream %q: %w", len(ids), s.cfg.Stream, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.inFlight, id)
	}
	return nil
}

// mayNotLook goes on without scripts.
func (s *source) mayNotLook(cause error) {
	s.plain = true
	s.env.Logger.Warn("trimmed entries may go unnoticed", "stream", s.cfg.Stream, "cause", cause,
		"cure", "allow the user MULTI, EXEC, EVAL, EVALSHA, XINFO, XREAD, XPENDING, XCLAIM and XRANGE")
}

// checkTrimmed looks every now and then. A read meanwhile may pass by what was trimmed.
func (s *source) checkTrimmed(ctx context.Context) error {
	if time.Now().Before(s.trimAt) {
		return nil
	}
	s.trimAt = time.Now().Add(trimCheck)
	info, group, err := s.info(ctx)
	if redis.HasErrorPrefix(err, "NOPERM") {
		s.trimAt = time.Now().Add(24 * time.Hour)
		return nil
	}
	if err != nil {
		return err
	}
	if met, err := s.meetEnd(ctx, info.LastGeneratedID, group.LastDeliveredID); met || err != nil {
		return err
	}
	first := info.LastGeneratedID
	if info.Length > 0 {
		first = info.FirstEntry.ID
	}
	removed := info.EntriesAdded - info.Length
	at := group.LastDeliveredID + "/" + strconv.FormatInt(removed, 10)
	if group.EntriesRead == 0 || removed <= group.EntriesRead || !idLess(group.LastDeliveredID, first) || at == s.reported {
		return nil // or Redis does not know how many the group has read
	}
	if err := s.report(ctx, removed-group.EntriesRead); err != nil {
		s.trimAt = time.Time{} // a read in between would pass by them
		return err
	}
	s.reported = at
	return nil
}

// meetEnd reports a stream that ends before the group's position, as last is before
// position, and whether it has. The group then begins again.
func (s *source) meetEnd(ctx context.Context, last, position string) (met bool, err error) {
	if last == "0-0" || !idLess(last, position) {
		return false, nil
	}
	if _, err := s.farEnds.Lost(ctx, "stream", s.farEnd(), relay.EndsBefore(last, position)); err != nil {
		return true, err
	}
	return true, s.prepare(ctx)
}

// report logs and stores that n entries were removed unread.
func (s *source) report(ctx context.Context, n int64) error {
	return s.farEnds.Missed(ctx, s.farEnd(), n, "unread entries are lost", "stream", s.cfg.Stream, "group", s.cfg.Group,
		"entries", n, "cause", "they were trimmed or deleted", "cure", "let the stream keep more, or the pipeline keep up")
}

// reportGrace is how long a report may go on when the read is cancelled. What is logged and
// not removed would be reported again.
const reportGrace = time.Second

// reportNote reports what a note counts, and removes it.
func (s *source) reportNote(ctx context.Context, note string) error {
	ctx, cancel := backoff.Outlive(ctx, reportGrace)
	defer cancel()
	if note != s.reported { // else it could not be removed
		if err := s.report(ctx, s.noted(note)); err != nil {
			return err
		}
		s.reported = note
	}
	if err := s.acker.XGroupDestroy(ctx, s.cfg.Stream, note).Err(); err != nil {
		s.env.Logger.Warn("note of lost entries stays", "stream", s.cfg.Stream, "group", note, "err", err)
	}
	return nil
}

// forget reports pending entries whose data is gone, and then acknowledges them.
func (s *source) forget(ctx context.Context, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	ctx, cancel := backoff.Outlive(ctx, reportGrace)
	defer cancel()
	err := s.farEnds.Missed(ctx, s.farEnd(), int64(len(ids)), "pending entries are lost", "stream", s.cfg.Stream, "group", s.cfg.Group,
		"entries", len(ids), "first", ids[0],
		"cause", "they were trimmed or deleted after they had been delivered and before they were acknowledged")
	if err != nil {
		return err
	}
	if err := s.acker.XAck(ctx, s.cfg.Stream, s.cfg.Group, ids...).Err(); err != nil {
		s.env.Logger.Warn("pending entries without data stay", "stream", s.cfg.Stream, "err", err)
	}
	return nil
}

func (s *source) info(ctx context.Context) (*redis.XInfoStream, *redis.XInfoGroup, error) {
	info, err := s.acker.XInfoStream(ctx, s.cfg.Stream).Result()
	if err != nil {
		return nil, nil, classify(fmt.Errorf("inspect stream %q: %w", s.cfg.Stream, err))
	}
	groups, err := s.acker.XInfoGroups(ctx, s.cfg.Stream).Result()
	if err != nil {
		return nil, nil, classify(fmt.Errorf("inspect the groups of stream %q: %w", s.cfg.Stream, err))
	}
	for i := range groups {
		if groups[i].Name == s.cfg.Group {
			return info, &groups[i], nil
		}
	}
	return nil, nil, fmt.Errorf("stream %q has no group %q", s.cfg.Stream, s.cfg.Group)
}

// Lag implements [relay.Lagger].
func (s *source) Lag(ctx context.Context) (rows int64, seconds float64, err error) {
	info, group, err := s.info(ctx)
	if err != nil {
		return 0, 0, err
	}
	if info.LastGeneratedID == group.LastDeliveredID || info.Length == 0 {
		return 0, 0, nil
	}
	next, err := s.acker.XRangeN(ctx, s.cfg.Stream, "("+group.LastDeliveredID, "+", 1).Result()
	if err != nil {
		return 0, 0, classify(fmt.Errorf("read stream %q: %w", s.cfg.Stream, err))
	}
	if len(next) == 0 {
		return 0, 0, nil
	}
	rows = min(group.Lag, info.Length)
	if rows <= 0 {
		rows = -1 // Redis does not know
	}
	return rows, max(0, time.Since(entryTime(next[0].ID)).Seconds()), nil
}

// Ping implements [relay.Pinger].
func (s *source) Ping(ctx context.Context) error { return ping(ctx, s.acker) }

// Close implements [relay.Source].
func (s *source) Close() error {
	err := errors.Join(s.reader.Close(), s.acker.Close())
	if errors.Is(err, redis.ErrClosed) {
		return nil
	}
	return err
}
