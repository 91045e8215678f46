// Package relaycfg turns a pipeline's configuration into Go structs: strictly,
// keeping defaults, and with errors that name the key and the nearest valid one.
//
// A configuration is a struct whose fields carry three tags:
//
//	URL     relaycfg.List     `json:"url" relay:"required" doc:"Servers to connect to."`
//	Policy  string            `json:"deliver_policy" relay:"enum=all|last|new" doc:"..."`
//	Durable string            `json:"consumer" relay:"alias=durable_name" doc:"..."`
//	Wait    relaycfg.Duration `json:"ack_wait" doc:"..."`
//	Visible relaycfg.Duration `json:"visibility_timeout" relay:"unit=s" doc:"..."`
//
// json is the key. doc is one sentence, for the reference documentation. relay is a
// comma-separated list:
//
//	required   the value must not be empty; a key without a default must be present
//	alias=A|B  other names of the key
//	enum=A|B   the only values allowed
//	min=N      the smallest number allowed; of a duration, in nanoseconds
//	max=N      the largest
//	needs=A|B  the other keys that a value which is not empty needs
//	excludes=A the keys that it excludes
//	file       the value names a file, which the operator must permit
//	pem        as file, or the value is the PEM text itself
//	unit=s     a bare number counts seconds
//	secret     the value, such as a URL, may hold a secret
//
// A field is a string, bool, int, int64, float64, map[string]string or
// map[string]relay.Template. Or it has one of the types [List], [Ints], [Duration],
// [Size], [Secret], [Secrets], relay.Template, any type with UnmarshalText, or a struct
// whose UnmarshalJSON calls [Decode].
//
// [Sink] and [Source] make the factories of a backend from such a struct.
package relaycfg

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Error is a problem with one key of a configuration.
type Error struct {
	Key     string // as the configuration spells it
	Problem string
}

func (e *Error) Error() string { return fmt.Sprintf("key %q: %s", e.Key, e.Problem) }

// Errorf returns an [Error] for key, for use in Validate methods.
func Errorf(key, format string, args ...any) error {
	return &Error{Key: key, Problem: fmt.Sprintf(format, args...)}
}

// Decode fills the struct to which cfg points from the JSON object raw. Fields
// that raw does not mention keep their values. It reports all problems together,
// each as an [*Error]. These are unknown keys, values of a wrong type or outside their
// bounds, missing keys, and keys that need or exclude others. If there is none, Decode calls cfg's Validate
// method, if it has one. raw may be empty.
func Decode(raw json.RawMessage, cfg any) error {
	values := make(map[string]json.RawMessage)
	if len(bytes.TrimSpace(raw)) > 0 {
		if err := json.Unmarshal(raw, &values); err != nil {
			return fmt.Errorf("configuration is not a JSON object: %w", err)
		}
	}
	target := reflect.ValueOf(cfg).Elem()
	keys := Keys(target.Interface())
	var errs []error
	seen := make(map[string]string) // canonical key -> as spelled
	for _, spelled := range slices.Sorted(maps.Keys(values)) {
		key, unit, ok := match(keys, spelled)
		if !ok {
			errs = append(errs, unknown(keys, spelled))
			continue
		}
		if first, dup := seen[key.Name]; dup {
			errs = append(errs, Errorf(spelled, "is the same key as %q; keep one", first))
			continue
		}
		seen[key.Name] = spelled
		if err := set(target.FieldByIndex(key.index), key, unit, values[spelled]); err != nil {
			errs = append(errs, within(spelled, err))
		}
	}
	for _, key := range keys {
		if key.filled && target.FieldByIndex(key.index).IsZero() && !failed(errs, seen[key.Name]) {
			errs = append(errs, Errorf(key.Name, "is required: %s", key.Doc))
		}
	}
	if len(errs) == 0 {
		errs = related(target, keys)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if v, ok := cfg.(interface{ Validate() error }); ok {
		return v.Validate()
	}
	return nil
}

// related returns the problems of keys that need or exclude others.
func related(target reflect.Value, keys []Key) (errs []error) {
	given := make(map[string]bool, len(keys))
	for _, key := range keys {
		given[key.Name] = !target.FieldByIndex(key.index).IsZero()
	}
	for _, key := range keys {
		if !given[key.Name] {
			continue
		}
		for _, other := range key.needs {
			if !given[other] {
				errs = append(errs, Errorf(key.Name, "needs %s: set both or none", other))
			}
		}
		for _, other := range key.excludes {
			if given[other] {
				errs = append(errs, Errorf(key.Name, "excludes %s: set one of them", other))
			}
		}
	}
	return errs
}

// within returns err as a problem of key, or of a key inside it.
func within(key string, err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return Errorf(key+"."+e.Key, "%s", e.Problem)
	}
	return Errorf(key, "%s", err)
}

func failed(errs []error, key string) bool {
	return key != "" && slices.ContainsFunc(errs, func(err error) bool {
		var e *Error
		return errors.As(err, &e) && e.Key == key
	})
}

// Find returns the key that a configuration spells as spelled: its name or an alias. The
// name of a duration may be followed by its unit.
func Find(keys []Key, spelled string) (Key, bool) {
	key, _, ok := match(keys, spelled)
	return key, ok
}

// match is Find, and returns the unit of a duration.
func match(keys []Key, spelled string) (key Key, unit string, ok bool) {
	for _, k := range keys {
		names := append([]string{k.Name}, k.Aliases...)
		if slices.Contains(names, spelled) {
			return k, cmp.Or(unitOf(spelled), k.Unit), true
		}
		if k.Type == "duration" {
			for _, suffix := range []string{"_ms", "_seconds"} {
				if base, cut := strings.CutSuffix(spelled, suffix); cut && slices.Contains(names, base) {
					return k, unitOf(spelled), true
				}
			}
		}
	}
	return Key{}, "", false
}

func unitOf(key string) string {
	switch {
	case strings.HasSuffix(key, "_ms"):
		return "ms"
	case strings.HasSuffix(key, "_seconds"):
		return "s"
	}
	return ""
}

func unknown(keys []Key, spelled string) error {
	var names []string
	for _, k := range keys {
		names = append(names, k.Name)
		names = append(names, k.Aliases...)
	}
	if near := Nearest(spelled, names); near != "" {
		return Errorf(spelled, "unknown key; did you mean %q?", near)
	}
	return Errorf(spelled, "unknown key; valid keys are %s", strings.Join(names, ", "))
}

// set stores raw in field. JSON null leaves the default.
func set(field reflect.Value, key Key, unit string, raw json.RawMessage) error {
	if string(raw) == "null" {
		return nil
	}
	if d, ok := field.Addr().Interface().(*Duration); ok {
		if err := d.parse(raw, unit); err != nil {
			return err
		}
		return bounded(key, int64(*d), func(n int64) any { return Duration(n) })
	}
	// A number or a boolean out of ${env:NAME} is a string by the time it is here.
	if bare, ok := unquoted(field, raw); ok {
		raw = bare
	}
	if k := field.Kind(); k == reflect.Map || k == reflect.Slice {
		field.SetZero() // json would write into the memory of the defaults
	}
	if err := json.Unmarshal(raw, field.Addr().Interface()); err != nil {
		var typeErr *json.UnmarshalTypeError
		if errors.As(err, &typeErr) {
			return fmt.Errorf("wants %s, not %s", key.Type, kindOf(raw))
		}
		return err
	}
	if len(key.Enum) > 0 && !slices.Contains(key.Enum, field.String()) {
		if near := Nearest(field.String(), key.Enum); near != "" && len(field.String()) > 1 { // short words are like any other
			return fmt.Errorf("unknown value %q; did you mean %q?", field.String(), near)
		}
		return fmt.Errorf("unknown value %q; must be one of %s", field.String(), strings.Join(key.Enum, ", "))
	}
	if field.CanInt() {
		return bounded(key, field.Int(), func(n int64) any { return n })
	}
	return nil
}

// bounded checks a number, which show turns into the form that errors quote.
func bounded(key Key, n int64, show func(int64) any) error {
	switch {
	case key.Min != nil && n < *key.Min && *key.Min == 1 && key.Type == "duration":
		return fmt.Errorf("is %v; must be greater than 0", show(n))
	case key.Min != nil && n < *key.Min:
		return fmt.Errorf("is %v; must be at least %v", show(n), show(*key.Min))
	case key.max != nil && n > *key.max:
		return fmt.Errorf("is %v; must be at most %v", show(n), show(*key.max))
	}
	return nil
}

// unquoted returns the number or boolean that the string raw holds, if that is
// what field wants.
func unquoted(field reflect.Value, raw json.RawMessage) (json.RawMessage, bool) {
	if _, custom := field.Addr().Interface().(json.Unmarshaler); custom || len(raw) < 3 || raw[0] != '"' {
		return nil, false
	}
	bare := raw[1 : len(raw)-1]
	switch field.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int64, reflect.Float64:
		return bare, json.Valid(bare)
	default:
		return nil, false
	}
}

func kindOf(raw json.RawMessage) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "the string " + strconv.Quote(strings.Trim(string(raw), `"`))
	case 't', 'f':
		return "the boolean " + string(raw)
	}
	return "the number " + string(raw)
}

// Nearest returns the candidate that is most like word, or "" when none is like
// it at all.
func Nearest(word string, candidates []string) string {
	best, bestDistance := "", max(2, len(word)/3)+1
	for _, c := range candidates {
		if d := distance(word, c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance counts the insertions, deletions, substitutions and swaps of
// neighbours between a and b.
func distance(a, b string) int {
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}
