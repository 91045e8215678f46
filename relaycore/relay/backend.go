package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"
)

// Direction of a pipeline.
type Direction string

// The two directions, as the catalog spells them.
const (
	Forward Direction = "forward" // outbox to broker
	Reverse Direction = "reverse" // broker to inbox
)

// Env is what the engine lends a backend. It is a struct so that it can grow.
type Env struct {
	Pipeline string // the pipeline's name
	Group    string // --relay-group-id
	// Identity distinguishes the pipeline from all others in the world, also from one of
	// the same name in another database. A sink that is read back writes it beside the
	// event's id, and recognises only what has it, or has none. "" for a source.
	Identity string
	Logger   *slog.Logger // never nil; carries the pipeline's name
	// Subject is the template from which the engine renders Message.Subject, for
	// sinks that create what takes the messages. Zero for a source.
	Subject Template
	// Checkpoint is where a source that is a Checkpointer goes on; zero at a
	// pipeline's first start, and for a sink.
	Checkpoint Checkpoint
	// ScopeIDs is set for a source that must not take an id of a producer that is no
	// relay for unique in the world. The message's place at the far end identifies it,
	// or else the id together with the far end's name. See [WroteRelay].
	ScopeIDs bool
	// MaxMessage is the most bytes that the body of a message may have; 0 is no bound. The
	// engine dead-letters a larger one. A source that can refuse it does so. 0 for a sink.
	MaxMessage int64
	// MaxAnswer is the most bytes that one answer of the far end may have: a message, or all
	// that it returns at once. A backend refuses a larger one before its client allocates
	// memory for it. It follows from the memory of the process; 0 is no bound.
	MaxAnswer int64
	// Control is [net.Dialer]'s. A backend gives it to its dialer, so that it connects to
	// no address that the operator forbids. It is nil if the operator forbids none.
	Control func(network, address string, c syscall.RawConn) error
	// OpenFile opens a file of the configuration for reading, with further flags, and refuses
	// one that the operator does not permit. nil permits all; see [Env.Open].
	OpenFile func(path string, flags int) (*os.File, error)
	// ReadFile returns what a regular file of the configuration holds, and refuses one that
	// the operator does not permit. nil permits all; see [Env.Read].
	ReadFile func(path string) ([]byte, error)
	// FarEnds is what KeepFarEnds stored last, for [RecallFarEnds]; "" at a pipeline's
	// first start, and for a sink.
	FarEnds string
	// KeepFarEnds stores state in the pipeline's cursor and returns when it is durable.
	// It is nil for a sink, and for commands that only look.
	KeepFarEnds func(ctx context.Context, state string) error
	// CountLoss counts that a source has reported messages that its far end lost. It is nil
	// for a sink, and for commands that only look. See [Env.Loss].
	CountLoss func()
}

// Open opens a file of the configuration for reading, with further flags.
func (e Env) Open(path string, flags int) (*os.File, error) {
	if e.OpenFile == nil {
		return os.OpenFile(path, os.O_RDONLY|flags, 0)
	}
	return e.OpenFile(path, flags)
}

// Read returns what a regular file of the configuration holds.
func (e Env) Read(path string) ([]byte, error) {
	if e.ReadFile == nil {
		return os.ReadFile(path)
	}
	return e.ReadFile(path)
}

// Loss counts a report of messages that the far end lost before the pipeline had them.
func (e Env) Loss() {
	if e.CountLoss != nil {
		e.CountLoss()
	}
}

// Wrote reports whether the pipeline may have written something with that identity beside
// it. Without one it may be of an older relay.
func (e Env) Wrote(identity string) bool { return identity == "" || identity == e.Identity }

// Backend is one broker: a value that a binary's main passes on. It is a struct
// of functions and not an interface, so that a new field breaks no backend.
type Backend struct {
	// Name is the value of sink_type and source_type, and the prefix of flat keys,
	// with "-" written as "_".
	Name string
	// Aliases are other names by which configurations know the backend.
	Aliases []string

	// Sink and Source make the two ends; a zero factory means that the backend
	// does not have that end. relaycfg.Sink and relaycfg.Source make factories.
	Sink   SinkFactory
	Source SourceFactory

	// SubjectKey names the sink key, if any, that takes the place of
	// subject_template because the backend's destinations are subjects.
	SubjectKey string

	// Copies is how many times a message is in memory while the sink sends it: its row,
	// its body, and the copies of the client. The largest row of a pipeline follows from
	// it. 0 means 3.
	Copies int

	// Refusals are the far end's answers to a message that it does not accept.
	Refusals Refusals

	// SinkGuarantee and SourceGuarantee describe in a few words what an operator gets.
	SinkGuarantee   Guarantee
	SourceGuarantee Guarantee
}

// SinkFactory makes the sinks of a backend.
type SinkFactory = Factory[Sink]

// SourceFactory makes the sources of a backend.
type SourceFactory = Factory[Source]

// Factory makes one end of a pipeline from its configuration, in two steps. So a
// configuration is decoded once, and can be checked without a connection.
type Factory[T any] struct {
	// Defaults is the configuration struct with its defaults. The list of keys, the
	// validation in SQL and the docs are made from it; see package relaycfg for the
	// tags.
	Defaults any
	// Decode returns the configuration that raw holds: the backend's own keys,
	// without prefix, secrets resolved. It does no I/O.
	Decode func(raw json.RawMessage) (config any, err error)
	// Open connects and validates, so that a wrong configuration fails when the
	// pipeline starts and not at its first message. config is what Decode returned.
	// ctx bounds the call, not the life of what it returns. With an error it
	// returns a nil interface.
	Open func(ctx context.Context, env Env, config any) (T, error)
}

// IsZero reports whether the factory makes nothing.
func (f Factory[T]) IsZero() bool { return f.Open == nil }

// New decodes raw and opens the end that it describes.
func (f Factory[T]) New(ctx context.Context, env Env, raw json.RawMessage) (T, error) {
	config, err := f.Decode(raw)
	if err != nil {
		var none T
		return none, err
	}
	return f.Open(ctx, env, config)
}

// Guarantee is what a pipeline's far end gives, for the check command and docs.
type Guarantee struct {
	Delivery string // "at least once" or "effectively once"
	Dedup    string // what recognises a duplicate, and for how long
	Order    string // "per key", "per partition and key", ...
	Weakest  string // the first thing that would break the above
}

// Guarantor is a Sink or Source whose guarantee depends on the far end that it
// found, for example on the length of a deduplication window.
type Guarantor interface {
	Guarantee() Guarantee
}

// Registry is the set of backends linked into a binary.
type Registry struct {
	backends []Backend
	byName   map[string]Backend
}

// NewRegistry returns a registry of backends. A missing or repeated name is an
// error, as is a backend that supports no direction.
func NewRegistry(backends ...Backend) (*Registry, error) {
	r := &Registry{backends: slices.Clone(backends), byName: make(map[string]Backend)}
	for _, b := range backends {
		if b.Name == "" {
			return nil, fmt.Errorf("register backend: no name")
		}
		if b.Sink.IsZero() && b.Source.IsZero() {
			return nil, fmt.Errorf("register backend %q: neither sink nor source", b.Name)
		}
		for _, name := range append([]string{b.Name}, b.Aliases...) {
			if _, dup := r.byName[name]; dup {
				return nil, fmt.Errorf("register backend %q: name %q is taken", b.Name, name)
			}
			r.byName[name] = b
		}
	}
	return r, nil
}

// Lookup returns the backend called name, by its own name or an alias.
func (r *Registry) Lookup(name string) (Backend, error) {
	b, ok := r.byName[name]
	if !ok {
		return Backend{}, fmt.Errorf("%w %q: this binary has %s", ErrUnknownBackend, name, strings.Join(r.Names(), ", "))
	}
	return b, nil
}

// Names returns the names of the linked backends, sorted.
func (r *Registry) Names() []string {
	names := make([]string, 0, len(r.backends))
	for _, b := range r.backends {
		names = append(names, b.Name)
	}
	slices.Sort(names)
	return names
}

// Backends returns the linked backends in the order in which they were given.
func (r *Registry) Backends() []Backend { return slices.Clone(r.backends) }
