package catalog

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Row is a pipeline as the catalog stores it.
type Row struct {
	Name      string
	Direction relay.Direction
	Enabled   bool
	Config    json.RawMessage

	size     int   // of Config in the catalog; a large one is not transferred
	snapshot int64 // id of the newest request for a snapshot; 0 = there is none
}

// section is the part of a configuration that one struct decodes. It holds values by
// key without prefix, and the path at which the user wrote each.
type section struct {
	keys   []relaycfg.Key
	values map[string]json.RawMessage
	paths  map[string]string // key as spelled, without prefix -> path
	seen   map[string]string // canonical key -> path
	prefix string            // of the paths of keys that are not set
}

func newSection(keys []relaycfg.Key, prefix string) *section {
	return &section{keys, make(map[string]json.RawMessage), make(map[string]string), make(map[string]string), prefix}
}

// add stores the value of a key that belongs to the section. A null counts as not set.
func (s *section) add(spelled, canonical, path string, raw json.RawMessage) error {
	if string(raw) == "null" {
		return nil
	}
	if first, dup := s.seen[canonical]; dup {
		return relaycfg.Errorf(path, "means the same as %q; keep one", first)
	}
	s.seen[canonical] = path
	s.values[spelled] = raw
	s.paths[spelled] = path
	return nil
}

// find returns the name of the key that has this name, alias or unit suffix.
func (s *section) find(spelled string) (string, bool) {
	key, ok := relaycfg.Find(s.keys, spelled)
	return key.Name, ok
}

// names lists the keys' names and aliases, each behind prefix.
func (s *section) names(prefix string) []string {
	var names []string
	for _, k := range s.keys {
		names = append(names, prefix+k.Name)
		for _, a := range k.Aliases {
			names = append(names, prefix+a)
		}
	}
	return names
}

func (s *section) raw() json.RawMessage {
	raw, _ := json.Marshal(s.values) // values are valid JSON already
	return raw
}

// explain rewrites the keys in err into the paths that the user wrote.
func (s *section) explain(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok { // the result of errors.Join itself, not an error that wraps it
		var errs []error
		for _, e := range joined.Unwrap() {
			errs = append(errs, s.explain(e))
		}
		return errors.Join(errs...)
	}
	var e *relaycfg.Error
	if !errors.As(err, &e) {
		return err
	}
	head, tail := e.Key, ""
	if i := strings.IndexAny(head, ".["); i >= 0 {
		head, tail = head[:i], head[i:]
	}
	path, ok := s.paths[head]
	if !ok {
		path, ok = s.seen[head]
	}
	if !ok {
		path = s.prefix + head
	}
	return &relaycfg.Error{Key: path + tail, Problem: e.Problem}
}

// conceal is explain for errors that may quote resolved values: it names the references of
// a value in place of the problem.
func (s *section) conceal(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, e := range joined.Unwrap() {
			errs = append(errs, s.conceal(e))
		}
		return errors.Join(errs...)
	}
	err = s.explain(err)
	var e *relaycfg.Error
	if !errors.As(err, &e) {
		return err
	}
	path := e.Key
	if i := strings.IndexByte(path, '['); i >= 0 {
		path = path[:i]
	}
	for spelled, at := range s.paths {
		refs := relaycfg.References(s.values[spelled])
		if len(refs) > 0 && (at == path || strings.HasPrefix(path, at+".")) {
			return relaycfg.Errorf(e.Key, "the value of %s is not valid", strings.Join(refs, " and "))
		}
	}
	return err
}

// normaliser splits one row into the section that every pipeline has and the
// section of its backend.
type normaliser struct {
	row      Row
	reg      *relay.Registry
	far      string // "sink" or "source": the object of the broker
	near     string // the object of the outbox or inbox
	typeName string // as spelled
	backend  relay.Backend
	linked   bool
	common   *section
	own      *section
	errs     []error
}

// Normalise brings the flat and the nested form of a configuration into one, and decodes
// it. The problems of the row are in the pipeline's Err, and affect no other row.
func Normalise(row Row, reg *relay.Registry, access *relaycfg.Access) Pipeline {
	p := split(row, reg, access)
	if row.Enabled || !relaycfg.HasReference(row.Config) { // a disabled row reads no secrets
		_, p.Err = p.Resolve()
	}
	return p
}

// split is Normalise without the decoding: Err is set only for a malformed row.
func split(row Row, reg *relay.Registry, access *relaycfg.Access) Pipeline {
	n := &normaliser{row: row, reg: reg, far: "sink", near: "source"}
	if row.Direction == relay.Reverse {
		n.far, n.near = "source", "sink"
	}
	p := Pipeline{Key: Key{Direction: row.Direction, Name: row.Name}, Enabled: row.Enabled, Stored: row.Config, access: access}
	if err := n.split(); err != nil {
		n.errs = append(n.errs, err)
	}
	p.Backend, p.Linked = n.typeName, n.linked
	if n.linked {
		p.Backend = n.backend.Name
	}
	p.backend, p.common, p.own = n.backend, n.common, n.own
	p.malformed = errors.Join(n.errs...)
	p.Err = p.malformed
	return p
}

func (n *normaliser) split() error {
	if n.row.size > maxConfig {
		return fmt.Errorf("config has %d bytes, at most %d are read; refer to files with ${file:PATH}", n.row.size, maxConfig)
	}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(n.row.Config, &top); err != nil || top == nil {
		return fmt.Errorf("config is not a JSON object")
	}
	far, farErr := object(top, n.far)
	near, nearErr := object(top, n.near)
	if err := errors.Join(farErr, nearErr); err != nil {
		return err
	}
	if err := n.types(top, far, near); err != nil {
		return err
	}

	nested := far != nil
	ownPrefix, commonPrefix := flatPrefix(n.typeName), ""
	if nested {
		ownPrefix = n.far + "."
	}
	var keys []relaycfg.Key
	if n.linked {
		if !nested {
			ownPrefix = flatPrefix(n.backend.Name)
		}
		defaults, _, _ := farEnd(n.backend, n.row.Direction)
		keys = relaycfg.Keys(defaults)
	}
	n.own = newSection(keys, ownPrefix)
	n.common = newSection(Keys(n.row.Direction), commonPrefix)

	for _, key := range slices.Sorted(maps.Keys(top)) {
		switch key {
		case "sink", "source", "sink_type", "source_type":
		default:
			n.check(n.flat(key, top[key]))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(far)) {
		if key != "type" {
			n.check(n.nestedFar(key, far[key]))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(near)) {
		if key != "type" {
			n.check(n.nestedNear(key, near[key]))
		}
	}
	return n.file()
}

func (n *normaliser) check(err error) {
	if err != nil {
		n.errs = append(n.errs, err)
	}
}

// types finds the backend, and refuses a near end other than an outbox or inbox.
func (n *normaliser) types(top, far, near map[string]json.RawMessage) error {
	farType, farPath, err := oneOf(top, n.far+"_type", far, n.far)
	if err != nil {
		return err
	}
	nearType, nearPath, err := oneOf(top, n.near+"_type", near, n.near)
	if err != nil {
		return err
	}
	switch n.row.Direction {
	case relay.Forward:
		if nearType != "" && nearType != "outbox" {
			return relaycfg.Errorf(nearPath, "is %q, but an outbox pipeline reads from an outbox; leave the key out", nearType)
		}
	case relay.Reverse:
		if nearType != "" && !slices.Contains([]string{"pg-inbox", "pg_inbox", "inbox"}, nearType) {
			return relaycfg.Errorf(nearPath, "is %q, but an inbox pipeline writes to an inbox; leave the key out", nearType)
		}
	default:
		return fmt.Errorf("unknown direction %q", n.row.Direction)
	}
	if farType == "" {
		return relaycfg.Errorf(n.far+"_type", "is required: this binary has %s", strings.Join(n.reg.Names(), ", "))
	}
	n.typeName = farType
	b, err := n.reg.Lookup(farType)
	if err != nil { // another binary may have it
		return nil
	}
	n.backend, n.linked = b, true
	if _, _, ok := farEnd(b, n.row.Direction); !ok {
		return relaycfg.Errorf(farPath, "backend %q has no %s", b.Name, n.far)
	}
	return nil
}

// flat adds a key of the top level to its section.
func (n *normaliser) flat(key string, raw json.RawMessage) error {
	if name, ok := n.common.find(key); ok {
		return n.common.add(key, name, key, raw)
	}
	for _, prefix := range n.prefixes() {
		rest, cut := strings.CutPrefix(key, prefix)
		if !cut || rest == "" {
			continue
		}
		if !n.linked {
			return n.own.add(rest, rest, key, raw)
		}
		if name, ok := n.own.find(rest); ok {
			return n.own.add(rest, name, key, raw)
		}
		return unknown(key, n.own.names(prefix))
	}
	for _, k := range n.own.keys { // such as inbox_table of a pg-inbox sink
		if slices.Contains(k.Aliases, key) {
			return n.own.add(key, k.Name, key, raw)
		}
	}
	for _, b := range n.reg.Backends() {
		if strings.HasPrefix(key, flatPrefix(b.Name)) && b.Name != n.backend.Name {
			return relaycfg.Errorf(key, "belongs to backend %q, but %s_type is %q", b.Name, n.far, n.typeName)
		}
	}
	return unknown(key, slices.Concat(n.common.names(""), n.own.names(n.flatPrefix())))
}

// nestedFar adds a key of the broker's object to its section. The backend's keys take
// precedence over the common ones: sink.format of stdout belongs to stdout.
func (n *normaliser) nestedFar(key string, raw json.RawMessage) error {
	path := n.far + "." + key
	if name, ok := n.own.find(key); ok {
		return n.own.add(key, name, path, raw)
	}
	if name, ok := n.common.find(key); ok {
		return n.common.add(key, name, path, raw)
	}
	if !n.linked {
		return n.own.add(key, key, path, raw)
	}
	return unknown(path, slices.Concat(n.own.names(n.far+"."), n.common.names(n.far+".")))
}

// nestedNear adds a key of the outbox's or inbox's object to the common section.
func (n *normaliser) nestedNear(key string, raw json.RawMessage) error {
	path := n.near + "." + key
	name, ok := n.common.find(key)
	if !ok {
		return unknown(path, n.common.names(n.near+"."))
	}
	return n.common.add(key, name, path, raw)
}

// file requires a path if the type is "file", which is an alias of stdout.
func (n *normaliser) file() error {
	if n.typeName != "file" || !n.linked {
		return nil
	}
	if _, ok := n.own.seen["path"]; ok {
		return nil
	}
	return relaycfg.Errorf(n.own.prefix+"path", `is required when %s_type is "file"`, n.far)
}

func (n *normaliser) flatPrefix() string {
	if n.linked {
		return flatPrefix(n.backend.Name)
	}
	return flatPrefix(n.typeName)
}

// prefixes lists the prefixes that a flat key of the backend may have.
func (n *normaliser) prefixes() []string {
	prefixes := []string{flatPrefix(n.typeName)}
	if n.linked {
		prefixes = append(prefixes, flatPrefix(n.backend.Name))
		for _, a := range n.backend.Aliases {
			prefixes = append(prefixes, flatPrefix(a))
		}
	}
	return prefixes
}

func flatPrefix(backend string) string { return strings.ReplaceAll(backend, "-", "_") + "_" }

func unknown(path string, candidates []string) error {
	if near := cmp.Or(prefixed(path, candidates), relaycfg.Nearest(path, candidates)); near != "" {
		return relaycfg.Errorf(path, "unknown key; did you mean %q?", near)
	}
	slices.Sort(candidates)
	return relaycfg.Errorf(path, "unknown key; valid keys are %s", strings.Join(candidates, ", "))
}

// prefixed returns the candidate that differs from path by a backend's prefix alone, such
// as kafka_topic from topic. It returns "" if there is none.
func prefixed(path string, candidates []string) string {
	ours, best, bestDistance := path[strings.LastIndexByte(path, '.')+1:], "", math.MaxInt
	for _, c := range candidates {
		theirs := c[strings.LastIndexByte(c, '.')+1:]
		differ := strings.HasSuffix(theirs, "_"+ours) || strings.HasSuffix(ours, "_"+theirs)
		if d := max(len(theirs)-len(ours), len(ours)-len(theirs)); differ && d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// object returns the object called key, or nil if there is none.
func object(top map[string]json.RawMessage, key string) (map[string]json.RawMessage, error) {
	raw, ok := top[key]
	if !ok || string(raw) == "null" {
		return nil, nil
	}
	var obj map[string]json.RawMessage
	if json.Unmarshal(raw, &obj) != nil {
		return nil, relaycfg.Errorf(key, "wants an object")
	}
	return obj, nil
}

// oneOf returns the type that is set flat or in the object, and its path.
func oneOf(top map[string]json.RawMessage, flatKey string, obj map[string]json.RawMessage, objName string) (name, path string, err error) {
	flat, err := text(top[flatKey], flatKey)
	if err != nil {
		return "", "", err
	}
	nested, err := text(obj["type"], objName+".type")
	if err != nil {
		return "", "", err
	}
	switch {
	case flat != "" && nested != "" && flat != nested:
		return "", "", relaycfg.Errorf(flatKey, "is %q, but %s.type is %q", flat, objName, nested)
	case nested != "" && flat == "":
		return nested, objName + ".type", nil
	}
	return flat, flatKey, nil
}

func text(raw json.RawMessage, path string) (string, error) {
	if raw = bytes.TrimSpace(raw); len(raw) == 0 || string(raw) == "null" {
		return "", nil
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return "", relaycfg.Errorf(path, "wants a string")
	}
	return s, nil
}

// farEnd returns the defaults and the decoder of the backend's end.
func farEnd(b relay.Backend, d relay.Direction) (defaults any, decode func(json.RawMessage) (any, error), ok bool) {
	if d == relay.Reverse {
		return b.Source.Defaults, b.Source.Decode, !b.Source.IsZero()
	}
	return b.Sink.Defaults, b.Sink.Decode, !b.Sink.IsZero()
}

// decode returns the configuration of the backend's end, for its Open.
func decode(b relay.Backend, d relay.Direction, own json.RawMessage) (any, error) {
	defaults, decode, _ := farEnd(b, d)
	config, err := decode(own)
	if _, undecoded := config.(json.RawMessage); undecoded && err == nil {
		err = validate(defaults, own) // a backend without a factory decodes when it opens
	}
	return config, err
}

// validate decodes raw into a copy of the struct with defaults.
func validate(defaults any, raw json.RawMessage) error {
	v := reflect.Indirect(reflect.ValueOf(defaults))
	if !v.IsValid() || v.Kind() != reflect.Struct {
		return nil
	}
	target := reflect.New(v.Type())
	target.Elem().Set(v)
	return relaycfg.Decode(raw, target.Interface())
}
