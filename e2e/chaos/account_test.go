package chaos

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// account is what was written in one place, and what was done to that place between.
type account struct {
	written  []entry
	episodes []*episode
}

// entry is an event and the number of episodes that had begun when it was written. It
// can be lost by the episode of that index, and by no other. An episode lasts until the
// pipeline has delivered what was written after the harm.
type entry struct {
	rig.Event
	before int
}

// episode is one harm and what the relay logged about it.
type episode struct {
	harm   string
	kept   int  // as [ends.Harm] has it
	remade bool // as [ends.Harm] has it
	alarm  *regexp.Regexp
	count  *regexp.Regexp // as [ends.Harm] has it; nil where an alarm has no number
	began  time.Time
	alarms []string
	// failed is true if the harm or the wait after it failed, and so has the test. Alarms may
	// then come after the next harm.
	failed bool
}

// open begins an episode of h at the end called name.
func (a *account) open(what string, h ends.Harm, name string) *episode {
	e := &episode{harm: what, kept: h.Kept, remade: h.Remade, alarm: alarmOf(h, name), began: time.Now()}
	if h.Count != "" {
		e.count = regexp.MustCompile(h.Count)
	}
	a.episodes = append(a.episodes, e)
	return e
}

func (a *account) write(events []rig.Event) {
	for _, e := range events {
		a.written = append(a.written, entry{e, len(a.episodes)})
	}
}

// writtenBefore returns the events that only this episode can have destroyed.
func (a *account) writtenBefore(e *episode) (events []rig.Event) {
	for _, w := range a.written {
		if w.before < len(a.episodes) && a.episodes[w.before] == e {
			events = append(events, w.Event)
		}
	}
	return events
}

// alarmOf returns the pattern of a log line of the level WARN or ERROR that names the
// end and h's damage. A file's name may begin like that of its next life.
func alarmOf(h ends.Harm, name string) *regexp.Regexp {
	n := `(?:^|\W)` + regexp.QuoteMeta(name) + `(?:[^.\w]|$)`
	return regexp.MustCompile(`level=(?:WARN|ERROR) .*(?:` + n + `.*(?:` + h.Alarm + `)|(?:` + h.Alarm + `).*` + n + `)`)
}

// counted returns how many messages are lost by the alarms, -1 if they give no number. They
// count what was delivered and not acknowledged. Alarms that give the first message count it
// once, although two relays report it.
func (e *episode) counted() int {
	if e.count == nil {
		return -1
	}
	type place struct {
		part string
		at   int
	}
	n, places := 0, make(map[place]bool)
	for _, line := range e.alarms {
		m := e.count.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		group := func(name string) string {
			if i := e.count.SubexpIndex(name); i > 0 {
				return m[i]
			}
			return ""
		}
		messages, _ := strconv.Atoi(group("n")) // digits
		first, err := strconv.Atoi(group("first"))
		if err != nil {
			n += messages
			continue
		}
		for at := range messages {
			places[place{group("part"), first + at}] = true
		}
	}
	return n + len(places)
}

// named reports whether line is an alarm of e. A pipeline has the name of its end, so that
// the name of the pipeline does not count.
func (e *episode) named(line []byte) bool {
	return e.alarm.Match(line) && e.alarm.Match(ofPipeline.ReplaceAll(line, nil))
}

var ofPipeline = regexp.MustCompile(` pipeline=\S+`)

// alarms returns the lines of all relays' logs that e asks for.
func (c *crew) alarms(e *episode) (found []string, err error) {
	for _, r := range c.all {
		log, err := r.FullLog()
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(log) {
			stamp, _, _ := bytes.Cut(bytes.TrimPrefix(line, []byte("time=")), []byte(" "))
			at, err := time.Parse(time.RFC3339Nano, string(stamp))
			if err == nil && at.After(e.began) && e.named(line) {
				found = append(found, strings.TrimSpace(string(line)))
			}
		}
	}
	return found, nil
}

// verdict is an account that was held against what arrived.
type verdict struct {
	ledger rig.Ledger // Lost, Duplicated: those that no alarm explains
	named  int        // lost, and named by an alarm
	again  int        // arrived again after an alarm
	report string
}

// settle holds what arrived against what was written.
func (a *account) settle(arrived []rig.Event) verdict {
	v := verdict{ledger: rig.Ledger{Written: len(a.written)}}
	type place struct {
		note string
		id   int64
	}
	example := func(format string, args ...any) {
		if v.ledger.Example == "" {
			v.ledger.Example = fmt.Sprintf(format, args...)
		}
	}
	want := make(map[place]rig.Event, len(a.written))
	for _, e := range a.written {
		want[place{e.Note, e.ID}] = e.Event
	}
	times := make(map[place]int)
	last := make(map[string]int64)
	for _, e := range arrived {
		at := place{e.Note, e.ID}
		if want[at] != e {
			v.ledger.Wrong++
			example("never written: %+v", e)
			continue
		}
		if times[at]++; times[at] > 1 {
			continue
		}
		if key := e.Note + e.K; last[key] > e.Seq {
			v.ledger.Reordered++
			example("%+v arrived after number %d of its key", e, last[key])
		} else {
			last[key] = e.Seq
		}
	}
	lost := make([]int, len(a.episodes)+1)
	count := make([]int, len(a.episodes)+1)
	type part struct {
		before int
		key    string
	}
	behind := make(map[part]int) // events that arrived, of the key and the episode
	for _, e := range slices.Backward(a.written) {
		count[e.before]++
		n := times[place{e.Note, e.ID}]
		if n > 0 {
			behind[part{e.before, e.K}]++
		}
		switch {
		case n == 0 && a.explains(e.before, behind[part{e.before, e.K}]):
			v.named++
			lost[e.before]++
		case n == 0:
			v.ledger.Lost++
			lost[e.before]++
			example("lost without an alarm: %+v", e.Event)
		case n > 1 && a.reread(e.before):
			v.again += n - 1
		case n > 1:
			v.ledger.Duplicated += n - 1
			example("arrived %d times without an alarm: %+v", n, e.Event)
		}
	}
	for i, e := range a.episodes {
		if n := e.counted(); n >= 0 && n < lost[i] && len(e.alarms) > 0 {
			v.ledger.Lost += lost[i] - n
			example("alarms count %d of %d lost messages: %s", n, lost[i], e.harm)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d lost, named by alarms; %d read again after alarms; %s\n", v.named, v.again, v.ledger)
	for i, e := range a.episodes {
		fmt.Fprintf(&b, "  %s %s: %d written before it, %d of these lost", e.began.Format(time.TimeOnly), e.harm, count[i], lost[i])
		if len(e.alarms) > 0 {
			fmt.Fprintf(&b, "; %d alarms that count %d, first %s", len(e.alarms), e.counted(), e.alarms[0])
		}
		b.WriteString("\n")
	}
	v.report = b.String()
	return v
}

// explains reports whether the episode of that index has an alarm, and can have destroyed an
// event behind which so many of its key arrived. A relay reads a key's events in order. What
// it lost itself has later ones behind it.
func (a *account) explains(before, behind int) bool {
	if before == len(a.episodes) {
		return false
	}
	e := a.episodes[before]
	return len(e.alarms) > 0 && behind <= e.kept
}

// reread reports whether an alarm explains that an event of that index arrived again: the end
// lost a position, and kept its messages. An end that is made again has none of the old ones.
func (a *account) reread(before int) bool {
	for i, e := range a.episodes {
		if i >= before-1 && e.kept == ends.KeepsAll && len(e.alarms) > 0 {
			return true
		}
		if i >= before && e.remade {
			break
		}
	}
	return false
}

// TestSettle shows that the account bites.
func TestSettle(t *testing.T) {
	one, two := rig.Event{ID: 1, K: "a", Seq: 1, Note: "x"}, rig.Event{ID: 2, K: "a", Seq: 2, Note: "x"}
	three := rig.Event{ID: 1, K: "a", Seq: 3, Note: "y"}
	for name, tc := range map[string]struct {
		alarms  []string
		arrived []rig.Event
		kept    int
		want    rig.Ledger
		named   int
		again   int
	}{
		"all there":          {nil, []rig.Event{one, two, three}, 0, rig.Ledger{}, 0, 0},
		"lost and named":     {[]string{"lost messages=1"}, []rig.Event{one, three}, 0, rig.Ledger{}, 1, 0},
		"named too low":      {[]string{"lost messages=1"}, []rig.Event{three}, 0, rig.Ledger{Lost: 1}, 2, 0},
		"named in two parts": {[]string{"lost messages=1 at=1", "lost messages=1 at=2"}, []rig.Event{three}, 0, rig.Ledger{}, 2, 0},
		"named twice":        {[]string{"lost messages=1 at=1", "lost messages=1 at=1"}, []rig.Event{three}, 0, rig.Ledger{Lost: 1}, 2, 0},
		"lost in silence":    {nil, []rig.Event{one, three}, 0, rig.Ledger{Lost: 1}, 0, 0},
		"lost before others": {[]string{"lost messages=1"}, []rig.Event{two, three}, 0, rig.Ledger{Lost: 1}, 0, 0},
		"trimmed":            {[]string{"lost messages=1"}, []rig.Event{two, three}, 1, rig.Ledger{}, 1, 0},
		"nothing destroyed":  {[]string{"lost messages=1"}, []rig.Event{one, three}, ends.KeepsAll, rig.Ledger{Lost: 1}, 0, 0},
		"without order":      {[]string{"lost messages=1"}, []rig.Event{two, three}, ends.KeepsAny, rig.Ledger{}, 1, 0},
		"lost after the end": {[]string{"lost"}, []rig.Event{one, two}, 0, rig.Ledger{Lost: 1}, 0, 0},
		"again and named":    {[]string{"lost"}, []rig.Event{one, two, three, one}, ends.KeepsAll, rig.Ledger{}, 0, 1},
		"again, destroyed":   {[]string{"lost"}, []rig.Event{one, two, three, one}, 0, rig.Ledger{Duplicated: 1}, 0, 0},
		"again in silence":   {nil, []rig.Event{one, two, three, one}, 0, rig.Ledger{Duplicated: 1}, 0, 0},
		"other order":        {nil, []rig.Event{two, one, three}, 0, rig.Ledger{Reordered: 1}, 0, 0},
		"never written":      {nil, []rig.Event{one, two, three, {ID: 9}}, 0, rig.Ledger{Wrong: 1}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var a account
			a.write([]rig.Event{one, two})
			h := ends.Harm{Alarm: "lost", Kept: tc.kept, Count: `messages=(?P<n>\d+)(?: at=(?P<first>\d+))?`}
			a.open("stream deleted", h, "s").alarms = tc.alarms
			a.write([]rig.Event{three})
			v := a.settle(tc.arrived)
			v.ledger.Example, tc.want.Written = "", 3
			if v.ledger != tc.want || v.named != tc.named || v.again != tc.again {
				t.Errorf("settle() = %+v", v)
			}
		})
	}
}

// TestAlarmOf: an alarm names its own end, not another one or the next life of a file.
func TestAlarmOf(t *testing.T) {
	e := new(account).open("file cut", ends.Harm{Alarm: "was replaced|is gone"}, "/d/x.jsonl")
	stream := new(account).open("stream trimmed", ends.Harm{Alarm: "are lost"}, "remade_1")
	for line, want := range map[string]*episode{
		`level=ERROR msg="failed" err="read /d/x.jsonl: the file is gone"`:        e,
		`level=WARN msg="was replaced" path=/d/x.jsonl`:                           e,
		`level=INFO msg="was replaced" path=/d/x.jsonl`:                           nil,
		`level=ERROR msg="failed" err="read /d/x.jsonl.1: the file was replaced"`: nil,
		`level=ERROR msg="was replaced" path=/d/x.jsonls`:                         nil,
		`level=ERROR msg="failed" err="read /d/x.jsonl: timeout"`:                 nil,
		`level=ERROR msg="messages are lost" pipeline=remade_1 stream=remade_1`:   stream,
		`level=ERROR msg="messages are lost" pipeline=remade_1 stream=remade_2`:   nil,
		`level=ERROR msg="read \"remade_1/group\": 3 are lost" pipeline=remade_1`: stream,
	} {
		if got := e.named([]byte(line)); got != (want == e) {
			t.Errorf("%s is an alarm of the file: %v", line, got)
		}
		if got := stream.named([]byte(line)); got != (want == stream) {
			t.Errorf("%s is an alarm of the stream: %v", line, got)
		}
	}
}
