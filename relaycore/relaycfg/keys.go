package relaycfg

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Key describes one key of a configuration.
type Key struct {
	Name     string          `json:"name"`
	Type     string          `json:"type"` // string, integer, number, boolean, duration, size, list, object, settings, template, secret
	Required bool            `json:"required,omitempty"`
	Default  json.RawMessage `json:"default,omitempty"` // absent when the default is empty
	Aliases  []string        `json:"aliases,omitempty"`
	Enum     []string        `json:"enum,omitempty"`
	Unit     string          `json:"unit,omitempty"` // of a bare number in a duration: "s" or "ms"
	Min      *int64          `json:"min,omitempty"`
	Doc      string          `json:"doc"`

	File bool `json:"-"` // the value names a file
	PEM  bool `json:"-"` // the value may also be the PEM text of the file

	Secret bool `json:"-"` // the value is a secret, or a URL that may hold one

	index           []int
	max             *int64
	filled          bool // the value must not be empty
	needs, excludes []string
}

// Keys lists the keys of the configuration struct cfg, or of the struct to which
// it points, in the order of its fields. Defaults are the values cfg holds; the
// default of a secret is never shown. Embedded structs count as their fields.
//
// The list is shared by all callers with the same cfg, and must not be changed.
func Keys(cfg any) []Key {
	if cfg == nil {
		return nil
	}
	v := reflect.Indirect(reflect.ValueOf(cfg))
	if known, ok := keyLists.Load(v.Type()); ok && reflect.DeepEqual(known.(keyList).defaults, v.Interface()) {
		return known.(keyList).keys
	}
	keys := slices.Clip(appendKeys(nil, v, nil))
	keyLists.Store(v.Type(), keyList{v.Interface(), keys})
	return keys
}

// keyLists has the last list of each type. Thousands of pipelines have the same one.
var keyLists sync.Map // reflect.Type -> keyList

type keyList struct {
	defaults any // a struct
	keys     []Key
}

func appendKeys(keys []Key, v reflect.Value, index []int) []Key {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		at := append(append([]int(nil), index...), i)
		if f.Anonymous {
			keys = appendKeys(keys, v.Field(i), at)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		key := Key{Name: name, Type: typeName(f.Type), Doc: f.Tag.Get("doc"), index: at}
		for opt := range strings.SplitSeq(f.Tag.Get("relay"), ",") {
			word, value, _ := strings.Cut(opt, "=")
			switch word {
			case "file", "pem":
				key.File, key.PEM = true, word == "pem"
			case "secret":
				key.Secret = true
			case "required":
				key.filled, key.Required = true, v.Field(i).IsZero()
			case "alias":
				key.Aliases = strings.Split(value, "|")
			case "enum":
				key.Enum = strings.Split(value, "|")
			case "unit":
				key.Unit = value
			case "min":
				key.Min = number(value)
			case "max":
				key.max = number(value)
			case "needs":
				key.needs = strings.Split(value, "|")
			case "excludes":
				key.excludes = strings.Split(value, "|")
			}
		}
		key.Secret = key.Secret || key.Type == "secret"
		if !v.Field(i).IsZero() && key.Type != "secret" {
			key.Default, _ = json.Marshal(v.Field(i).Interface())
		}
		keys = append(keys, key)
	}
	return keys
}

func number(text string) *int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return &n
}

func typeName(t reflect.Type) string {
	switch reflect.Zero(t).Interface().(type) {
	case Duration:
		return "duration"
	case Size:
		return "size"
	case Secret, Secrets:
		return "secret"
	case relay.Template:
		return "template"
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return "string"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int64:
		return "integer"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return "list"
	case reflect.Map:
		return "object"
	case reflect.Struct:
		return "settings"
	default:
		return "string"
	}
}

// Table describes keys as a Markdown table. Each name gets the prefix.
func Table(prefix string, keys []Key) string {
	var b strings.Builder
	b.WriteString("| key | type | default | meaning |\n|---|---|---|---|\n")
	for _, k := range keys {
		value := "`" + string(k.Default) + "`"
		switch {
		case k.Required:
			value = "**required**"
		case len(k.Default) == 0:
			value = ""
		}
		meaning := k.Doc
		if len(k.Enum) > 0 {
			meaning += " One of `" + strings.Join(k.Enum, "`, `") + "`."
		}
		if len(k.needs) > 0 {
			meaning += " Needs `" + strings.Join(k.needs, "`, `") + "`."
		}
		if len(k.Aliases) > 0 {
			meaning += " Also written `" + strings.Join(k.Aliases, "`, `") + "`."
		}
		fmt.Fprintf(&b, "| `%s%s` | %s | %s | %s |\n", prefix, k.Name, k.Type, value, strings.ReplaceAll(meaning, "|", `\|`))
	}
	return b.String()
}
