package chaos

import (
	"bytes"
	"fmt"
	"regexp"
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
	alarm  *regexp.Regexp
	count  *regexp.Regexp // of the number in an alarm; nil where it has none
	began  time.Time
	alarms []string
	// failed is true if the harm or the wait after it failed, and so has the test. Alarms may
	// then come after the next harm.
	failed bool
}

// open begins an episode of h at the end called name.
func (a *account) open(what string, h ends.Harm, name string) *episode {
	e := &episode{harm: what, alarm: alarmOf(h, name), began: time.Now()}
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
// end and h's damage.
func alarmOf(h ends.Harm, name string) *regexp.Regexp {
	n := regexp.QuoteMeta(name)
	return regexp.MustCompile(`level=(?:WARN|ERROR) .*(?:` + n + `\b.*(?:` + h.Alarm + `)|(?:` + h.Alarm + `).*` + n + `\b)`)
}

// counted returns how many messages are lost by the alarms, -1 if they give no number. Two
// relays may report the same ones, and count what was delivered and not acknowledged.
func (e *episode) counted() int {
	if e.count == nil {
		return -1
	}
	n := 0
	for _, line := range e.alarms {
		if m := e.count.FindStringSubmatch(line); m != nil {
			one, _ := strconv.Atoi(m[1]) // digits
			n += one
		}
	}
	return n
}

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
			if err == nil && at.After(e.began) && e.alarm.Match(line) {
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
	for _, e := range a.written {
		count[e.before]++
		switch n := times[place{e.Note, e.ID}]; {
		case n == 0 && e.before < len(a.episodes) && len(a.episodes[e.before].alarms) > 0:
			v.named++
			lost[e.before]++
		case n == 0:
			v.ledger.Lost++
			lost[e.before]++
			example("lost without an alarm: %+v", e.Event)
		case n > 1 && a.alarmed(max(0, e.before-1)):
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

// alarmed reports whether there was an alarm in the episode of that index or later.
func (a *account) alarmed(from int) bool {
	for _, e := range a.episodes[min(from, len(a.episodes)):] {
		if len(e.alarms) > 0 {
			return true
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
		want    rig.Ledger
		named   int
		again   int
	}{
		"all there":          {nil, []rig.Event{one, two, three}, rig.Ledger{}, 0, 0},
		"lost and named":     {[]string{"lost messages=1"}, []rig.Event{one, three}, rig.Ledger{}, 1, 0},
		"named too low":      {[]string{"lost messages=1"}, []rig.Event{three}, rig.Ledger{Lost: 1}, 2, 0},
		"named in two parts": {[]string{"lost messages=1", "lost messages=1"}, []rig.Event{three}, rig.Ledger{}, 2, 0},
		"lost in silence":    {nil, []rig.Event{one, three}, rig.Ledger{Lost: 1}, 0, 0},
		"lost after the end": {[]string{"lost"}, []rig.Event{one, two}, rig.Ledger{Lost: 1}, 0, 0},
		"again and named":    {[]string{"lost"}, []rig.Event{one, two, three, one}, rig.Ledger{}, 0, 1},
		"again in silence":   {nil, []rig.Event{one, two, three, one}, rig.Ledger{Duplicated: 1}, 0, 0},
		"other order":        {nil, []rig.Event{two, one, three}, rig.Ledger{Reordered: 1}, 0, 0},
		"never written":      {nil, []rig.Event{one, two, three, {ID: 9}}, rig.Ledger{Wrong: 1}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var a account
			a.write([]rig.Event{one, two})
			a.open("stream deleted", ends.Harm{Alarm: "lost", Count: `messages=(\d+)`}, "s").alarms = tc.alarms
			a.write([]rig.Event{three})
			v := a.settle(tc.arrived)
			v.ledger.Example, tc.want.Written = "", 3
			if v.ledger != tc.want || v.named != tc.named || v.again != tc.again {
				t.Errorf("settle() = %+v", v)
			}
		})
	}
}
