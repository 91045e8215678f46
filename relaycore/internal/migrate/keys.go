package migrate

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// A pipeline may name a backend that the migrating binary lacks, so every binary has
// the keys of all backends. Backend [Common] has those of every pipeline.
//
//go:embed backends.json
var known []byte

// Common is the name of the backend whose keys every pipeline has: its Sink those of
// forward pipelines, its Source those of reverse ones.
const Common = "*"

// Backend describes the configuration of a backend.
type Backend struct {
	Name    string         `json:"name"`
	Aliases []string       `json:"aliases,omitempty"`
	Sink    []relaycfg.Key `json:"sink,omitempty"`
	Source  []relaycfg.Key `json:"source,omitempty"`
	// HasSink and HasSource distinguish an end without keys from no end.
	HasSink   bool `json:"has_sink"`
	HasSource bool `json:"has_source"`
}

// Specs describes the backends of a binary.
func Specs(backends []relay.Backend) []Backend {
	specs := make([]Backend, 0, len(backends))
	for _, b := range backends {
		specs = append(specs, Backend{
			Name:      b.Name,
			Aliases:   b.Aliases,
			Sink:      relaycfg.Keys(b.Sink.Defaults),
			Source:    relaycfg.Keys(b.Source.Defaults),
			HasSink:   !b.Sink.IsZero(),
			HasSource: !b.Source.IsZero(),
		})
	}
	return specs
}

// Known returns the backends that every binary knows, sorted by name. Those in linked
// replace the known ones of the same name.
func Known(linked []Backend) ([]Backend, error) {
	var all []Backend
	if err := json.Unmarshal(known, &all); err != nil {
		return nil, fmt.Errorf("backends.json: %w", err)
	}
	for _, b := range linked {
		all = slices.DeleteFunc(all, func(k Backend) bool { return k.Name == b.Name })
	}
	all = append(all, linked...)
	slices.SortFunc(all, func(a, b Backend) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Describe returns the content of backends.json for a binary that has all backends.
func Describe(backends []Backend) ([]byte, error) {
	all, err := Known(backends)
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(all, "", "\t")
	return append(text, '\n'), err
}

// keyRow is a row of relay_backend_keys.
type keyRow struct {
	Backend   string          `json:"backend"`
	Direction relay.Direction `json:"direction"`
	Key       string          `json:"key"`
	Type      string          `json:"type"`
	Required  bool            `json:"required"`
	Aliases   []string        `json:"aliases"`
	Enum      []string        `json:"enum"`
	Doc       string          `json:"doc"`
	Unit      string          `json:"unit,omitempty"`
	Minimum   *int64          `json:"minimum,omitempty"`
	Default   json.RawMessage `json:"default_value,omitempty"`
	Position  int             `json:"position"`
}

// keysSQL returns the statement that stores the keys of all backends, or only of those
// that the database does not know.
func keysSQL(linked []Backend, unknownOnly bool) (string, error) {
	backends, err := Known(linked)
	if err != nil {
		return "", err
	}
	var rows []keyRow
	for _, b := range backends {
		for _, end := range []struct {
			exists    bool
			direction relay.Direction
			keys      []relaycfg.Key
		}{{b.HasSink, relay.Forward, b.Sink}, {b.HasSource, relay.Reverse, b.Source}} {
			if !end.exists {
				continue
			}
			if b.Name != Common {
				rows = append(rows, keyRow{
					Backend: b.Name, Direction: end.direction, Key: "type", Type: "backend",
					Aliases: orEmpty(b.Aliases), Enum: []string{}, Doc: "The backend.",
				})
			}
			rows = append(rows, keyRows(b.Name, end.direction, end.keys)...)
		}
	}
	lines := make([]string, len(rows))
	for i, r := range rows {
		line, err := json.Marshal(r)
		if err != nil {
			return "", fmt.Errorf("key %q of %s: %w", r.Key, r.Backend, err)
		}
		lines[i] = string(line)
	}
	list := pg.Literal("[\n" + strings.Join(lines, ",\n") + "\n]")
	return fmt.Sprintf(storeKeys, list, unknownOnly), nil
}

// storeKeys stores the keys of backends. A backend that is not in the list came with
// another binary, and is kept.
//
//go:embed sql/keys.sql
var storeKeys string

func keyRows(backend string, d relay.Direction, keys []relaycfg.Key) []keyRow {
	rows := make([]keyRow, 0, len(keys))
	for i, k := range keys {
		rows = append(rows, keyRow{
			backend, d, k.Name, k.Type, k.Required, orEmpty(k.Aliases), orEmpty(k.Enum),
			k.Doc, k.Unit, k.Min, k.Default, i + 1,
		})
	}
	return rows
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
