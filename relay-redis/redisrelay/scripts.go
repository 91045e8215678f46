package redisrelay

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// A read moves the group past entries that were trimmed, and nothing at the server shows
// afterwards that they were there. A process that is killed, frozen or disconnected before
// it has the answer would leave no trace of them. So each read is a transaction with
// guardScript, which leaves a note at the server. A note is a group whose name has the
// number of entries removed unread. The source removes it when the loss is logged and
// stored.
//
// The script does not read by itself: to take entries through Lua halves the throughput.

// guardScript returns the group's position, the stream's last id and the names of the
// notes. The position is "" if there is no group, or if the user may not look. What is
// counted in a note is then part of the group's count. Redis before 7.0 does not count.
//
// ARGV: group, prefix of notes.
const guardScript = `
if redis.replicate_commands then redis.replicate_commands() end
local function map(flat)
  local m = {}
  for i = 1, #flat, 2 do m[flat[i]] = flat[i + 1] end
  return m
end
-- Ids are compared as text: their numbers have 64 bits, more than Lua's.
local function smaller(a, b) return #a < #b or #a == #b and a < b end
local function before(a, b)
  local ams, as = string.match(a, '(%d+)-(%d+)')
  local bms, bs = string.match(b, '(%d+)-(%d+)')
  return smaller(ams, bms) or ams == bms and smaller(as, bs)
end
local at, last, notes = '', '', {}
local stream, groups = redis.pcall('XINFO', 'STREAM', KEYS[1]), redis.pcall('XINFO', 'GROUPS', KEYS[1])
for _, flat in ipairs(not stream.err and not groups.err and groups or {}) do
  local group = map(flat)
  if string.sub(group.name, 1, #ARGV[2]) == ARGV[2] then notes[#notes + 1] = group.name end
  if group.name == ARGV[1] then
    local s, read = map(stream), group['entries-read']
    at, last = group['last-delivered-id'], s['last-generated-id']
    local first = s.length == 0 and last or s['first-entry'][1]
    local removed = (s['entries-added'] or 0) - s.length
    if read and removed > read and before(at, first) then
      notes[#notes + 1] = ARGV[2] .. (removed - read) .. ':' .. at
      redis.pcall('XGROUP', 'CREATE', KEYS[1], notes[#notes], at)
      redis.pcall('XGROUP', 'SETID', KEYS[1], ARGV[1], at, 'ENTRIESREAD', removed)
    end
  end
end
return {at, last, notes}
`

// claimScript claims a page of pending entries. It returns the entries, the ids of those
// whose data is gone, which stay pending, and where the next page begins, or "". XAUTOCLAIM
// forgets entries that are gone with the answer that names them.
//
// ARGV: group, consumer, idle time in ms, where to begin, limit.
var claimScript = redis.NewScript(`
if redis.replicate_commands then redis.replicate_commands() end
local page = redis.pcall('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], ARGV[4], '+', ARGV[5])
if page.err then return page end
local there, gone, claimed = {}, {}, {}
for _, pending in ipairs(page) do
  local id = pending[1]
  local list = #redis.call('XRANGE', KEYS[1], id, id) > 0 and there or gone
  list[#list + 1] = id
end
if #there > 0 then
  claimed = redis.pcall('XCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], unpack(there))
  if claimed.err then return claimed end
end
return {claimed, gone, #page == tonumber(ARGV[5]) and '(' .. page[#page][1] or ''}
`)

// claimPage bounds the entries that one claim looks at, as the server does nothing else
// meanwhile.
const claimPage = 100

// guarded is the answer of a transaction of guardScript and XREADGROUP.
type guarded struct {
	position, last string
	notes          []string
	entries        []redis.XMessage
}

// notePrefix begins the names of the notes of the source's group.
func (s *source) notePrefix() string { return s.cfg.Group + ":unread:" }

// noted returns the number of entries that a note counts.
func (s *source) noted(note string) int64 {
	count, _, _ := strings.Cut(strings.TrimPrefix(note, s.notePrefix()), ":")
	n, _ := strconv.ParseInt(count, 10, 64)
	return n
}

func (s *source) readGuarded(ctx context.Context, limit int) (g guarded, err error) {
	var look *redis.Cmd
	var read *redis.XStreamSliceCmd
	_, err = s.reader.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		// Not by its hash: a server that has forgotten the script would only read.
		look = tx.Eval(ctx, guardScript, []string{s.cfg.Stream}, s.cfg.Group, s.notePrefix())
		read = tx.XReadGroup(ctx, &redis.XReadGroupArgs{
			Group: s.cfg.Group, Consumer: s.cfg.Consumer, Streams: []string{s.cfg.Stream, ">"}, Count: int64(limit), Block: -1,
		})
		return nil
	})
	streams, readErr := read.Result()
	if readErr != nil && !errors.Is(readErr, redis.Nil) {
		return g, readErr
	}
	if len(streams) > 0 {
		g.entries = streams[0].Messages
	}
	if err != nil && !isReply(err) {
		return g, err
	}
	res, lookErr := look.Slice()
	if lookErr != nil || len(res) != 3 {
		return g, lookErr
	}
	g.position, _ = res[0].(string)
	g.last, _ = res[1].(string)
	notes, _ := res[2].([]any)
	for _, note := range notes {
		name, _ := note.(string)
		g.notes = append(g.notes, name)
	}
	return g, nil
}

// claimIdle claims a page of what any consumer has left for idle. gone are ids of entries
// without data. next is where the next page begins, "" at the end.
func (s *source) claimIdle(ctx context.Context, limit int, idle time.Duration) (
	entries []redis.XMessage, gone []string, next string, err error,
) {
	res, err := claimScript.Run(ctx, s.reader, []string{s.cfg.Stream}, s.cfg.Group, s.cfg.Consumer,
		idle.Milliseconds(), s.claimFrom, min(limit, claimPage)).Slice()
	if err != nil {
		return nil, nil, "", err
	}
	if len(res) != 3 {
		return nil, nil, "", fmt.Errorf("claim script returned %d values, want 3", len(res))
	}
	ids, _ := res[1].([]any)
	for _, id := range ids {
		text, _ := id.(string)
		gone = append(gone, text)
	}
	next, _ = res[2].(string)
	entries, err = entriesOf(res[0])
	return entries, gone, next, err
}

// entriesOf converts a script's entries: pairs of an id and a flat list of fields.
func entriesOf(reply any) ([]redis.XMessage, error) {
	list, _ := reply.([]any)
	entries := make([]redis.XMessage, len(list))
	for i, item := range list {
		pair, _ := item.([]any)
		if len(pair) != 2 {
			return nil, fmt.Errorf("entry %d of a script's answer is %v", i, item)
		}
		entries[i].ID, _ = pair[0].(string)
		fields, _ := pair[1].([]any)
		entries[i].Values = make(map[string]any, len(fields)/2)
		for f := 1; f < len(fields); f += 2 {
			name, _ := fields[f-1].(string)
			entries[i].Values[name] = fields[f]
		}
	}
	return entries, nil
}

// mayNotScript reports whether err is the server's refusal of scripts, or of what they run.
func mayNotScript(err error) bool {
	return redis.HasErrorPrefix(err, "NOPERM") ||
		isReply(err) && (strings.Contains(err.Error(), "unknown command") || strings.Contains(err.Error(), "can't run this command"))
}
