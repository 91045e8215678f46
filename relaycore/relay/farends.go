package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"sync"
)

// What a source does when its far end was made again, or ends before the position.
const (
	OnRecreatedStop    = "stop"    // the pipeline stops with an error until an operator decides
	OnRecreatedRestart = "restart" // the source reads the far end from its beginning, with new ids
)

// Incarnation identifies one life of a far end: the time when a stream was created, or
// a topic's id. A stream that was deleted and created again has the same name and another
// incarnation. A position in one incarnation has no meaning in another.
type Incarnation string

// Same reports whether other is the same incarnation, as far as is known: an
// incarnation that is not known is the same as any.
func (in Incarnation) Same(other Incarnation) bool { return in == "" || other == "" || in == other }

// FarEnd is a stream, topic or file of which the far end keeps the position, as the
// pipeline knows it.
type FarEnd struct {
	// ID is the life to which the position belongs; "" if the far end has no identity.
	ID Incarnation `json:"id,omitempty"`
	// Restarts counts how often the source began again within this life.
	Restarts int `json:"restarts,omitempty"`
	// First is true if the pipeline has read no other life.
	First bool `json:"first,omitempty"`
	// Pending is true from the decision to read from the beginning until the far end
	// has stored that position. See [FarEnds.Began].
	Pending bool `json:"pending,omitempty"`
	// Missed counts the messages that left the far end before the pipeline had them.
	Missed int64 `json:"missed,omitempty"`
	// Remade counts how often the far end was made again with an unknown number of
	// messages that the pipeline had not read.
	Remade int `json:"remade,omitempty"`
	// Floor is a position up to which nothing in this life is missing. All is in the inbox, or
	// counted in Missed, or was there before the pipeline. It is stored about a second late,
	// and nil if it is not known. See [FarEnds.Settled].
	Floor *uint64 `json:"floor,omitempty"`

	scoped bool // ids carry the life in any case; see Env.ScopeIDs
}

// Scope returns what an id made of a position carries, so that it differs from the
// ids of other lives. In the pipeline's first life it is empty, unless ids are scoped.
func (e FarEnd) Scope() string {
	switch {
	case e.Restarts == 0 && (e.ID == "" || e.First && !e.scoped):
		return ""
	case e.Restarts == 0:
		return "@" + string(e.ID)
	default:
		return "@" + string(e.ID) + "." + strconv.Itoa(e.Restarts)
	}
}

// FarEnds remembers in the pipeline's cursor which lives of its far ends a source has
// read, for far ends that keep the position themselves. It is safe for concurrent use.
type FarEnds struct {
	env     Env
	restart bool

	mu    sync.Mutex
	known map[string]FarEnd // by name, such as a topic's
	// alarmed are the alarms that are logged, and whose effect is not stored yet.
	alarmed map[string]bool
}

// RecallFarEnds returns what env's pipeline remembers. onRecreated is
// [OnRecreatedStop] or [OnRecreatedRestart].
func RecallFarEnds(env Env, onRecreated string) (*FarEnds, error) {
	f := &FarEnds{env: env, restart: onRecreated == OnRecreatedRestart, known: make(map[string]FarEnd), alarmed: make(map[string]bool)}
	if env.FarEnds == "" {
		return f, nil
	}
	if err := json.Unmarshal([]byte(env.FarEnds), &f.known); err != nil {
		return nil, Fatal(fmt.Errorf("read far_ends of the pipeline's cursor: %w", err))
	}
	return f, nil
}

const cureRecreated = "set on_recreated to restart to read it from its beginning"

// Meet records that the far end called name now lives as now, "" if that is not known.
// It returns once this is durable, so nothing may be received before. A far end that
// is new to the pipeline is adopted as it is. If another life is known, Meet returns
// the error of [OnRecreatedStop], or a FarEnd that is Pending. The caller then moves
// the position to the beginning and calls Began. kind is the far end's kind in errors.
func (f *FarEnds) Meet(ctx context.Context, kind, name string, now Incarnation) (FarEnd, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known, ok := f.known[name]
	switch {
	case !ok:
		return f.keep(ctx, name, FarEnd{ID: now, First: true})
	case known.ID == "" && now != "":
		known.ID = now
		return f.keep(ctx, name, known)
	case known.ID.Same(now):
		return f.scope(known), nil
	case !f.restart:
		return FarEnd{}, Fatal(fmt.Errorf("read %s %q: it was deleted and created again (%s, was %s); %s",
			kind, name, now, known.ID, cureRecreated))
	}
	f.alarm(ctx, "far end was created again", "kind", kind, "name", name, "is", now, "was", known.ID,
		"effect", "reading from its beginning; unread messages of the old one are lost")
	return f.keep(ctx, name, FarEnd{ID: now, Pending: true, Missed: known.Missed, Remade: known.Remade})
}

// Knows reports whether the pipeline has met the far end called name.
func (f *FarEnds) Knows(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.known[name]
	return ok
}

// Lost records that the far end called name no longer has the position, and continues
// like Meet. The far end lost its last messages, or was created again and has no
// identity that shows it. problem describes it in the error.
func (f *FarEnds) Lost(ctx context.Context, kind, name, problem string) (FarEnd, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.known[name]
	if !f.restart && !known.Pending {
		return FarEnd{}, Fatal(fmt.Errorf("read %s %q: %s; %s", kind, name, problem, cureRecreated))
	}
	f.alarm(ctx, "far end lost the position", "kind", kind, "name", name, "problem", problem,
		"effect", "reading from its beginning, with new ids")
	if !known.Pending {
		known.Restarts++
	}
	known.Floor = nil
	known.Pending = true
	return f.keep(ctx, name, known)
}

// Began records that the far end called name has stored the position of its beginning.
func (f *FarEnds) Began(ctx context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.known[name]
	if !known.Pending {
		return nil
	}
	known.Pending = false
	_, err := f.keep(ctx, name, known)
	return err
}

// Missed logs an alarm for n messages that the far end called name lost before the pipeline
// had them, and counts them. It returns when that is durable, and then the caller moves a
// position. After an error the caller repeats it: the same alarm is logged once.
func (f *FarEnds) Missed(ctx context.Context, name string, n int64, alarm string, fields ...any) error {
	return f.count(ctx, name, alarm, fields, func(known *FarEnd) { known.Missed += n })
}

// MissedTo is Missed and Settled in one: nothing is counted again after a crash.
func (f *FarEnds) MissedTo(ctx context.Context, name string, n int64, floor uint64, alarm string, fields ...any) error {
	return f.count(ctx, name, alarm, fields, func(known *FarEnd) {
		known.Missed += n
		known.settle(floor)
	})
}

// Remade logs an alarm for the far end called name, which was made again, and counts it. It
// returns like Missed. The far end of this life has no identity yet.
func (f *FarEnds) Remade(ctx context.Context, name, alarm string, fields ...any) error {
	return f.count(ctx, name, alarm, fields, func(known *FarEnd) {
		known.Remade++
		known.ID = ""
	})
}

func (f *FarEnds) count(ctx context.Context, name, alarm string, fields []any, change func(known *FarEnd)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.alarm(ctx, alarm, fields...)
	known := f.known[name]
	change(&known)
	_, err := f.keep(ctx, name, known)
	return err
}

// alarm is called with the lock held. A caller repeats it until its effect is stored.
func (f *FarEnds) alarm(ctx context.Context, text string, fields ...any) {
	key := fmt.Sprint(text, fields)
	if f.alarmed[key] {
		return
	}
	f.alarmed[key] = true
	f.env.Logger.ErrorContext(ctx, text, fields...) //nolint:sloglint // the callers have constants
	f.env.Loss()
}

// Settled records that nothing up to floor of the far end called name is missing: see
// [FarEnd.Floor]. It is for servers that move their own position past messages that they
// remove. A source calls it before it receives anything in a life of which no floor is known.
func (f *FarEnds) Settled(ctx context.Context, name string, floor uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.known[name]
	if known.Pending || !known.settle(floor) {
		return nil
	}
	_, err := f.keep(ctx, name, known)
	return err
}

// settle moves the floor, if that is forward.
func (e *FarEnd) settle(floor uint64) bool {
	if e.Floor != nil && floor <= *e.Floor {
		return false
	}
	e.Floor = &floor
	return true
}

// Floor returns what Settled recorded last for this life of the far end called name, if
// anything.
func (f *FarEnds) Floor(name string) (floor uint64, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if stored := f.known[name].Floor; stored != nil {
		return *stored, true
	}
	return 0, false
}

// EndsBefore is a problem for Lost.
func EndsBefore(end, position any) string {
	return fmt.Sprintf("it ends at %v, before the position %v: it lost messages or was created again", end, position)
}

func (f *FarEnds) scope(e FarEnd) FarEnd {
	e.scoped = f.env.ScopeIDs
	return e
}

// keep is called with the lock held. What could not be stored is not known either, so
// that the next call tries again.
func (f *FarEnds) keep(ctx context.Context, name string, e FarEnd) (FarEnd, error) {
	next := maps.Clone(f.known)
	next[name] = e
	if f.env.KeepFarEnds != nil {
		state, err := json.Marshal(next)
		if err == nil {
			err = f.env.KeepFarEnds(ctx, string(state))
		}
		if err != nil {
			return FarEnd{}, fmt.Errorf("remember %q: %w", name, err)
		}
	}
	f.known = next
	clear(f.alarmed)
	return f.scope(e), nil
}
