package relaycfg

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// Duration is written as a string such as "250ms" or "30s". In a key that ends
// in _ms or _seconds, or has a unit of its own, a bare number will do.
type Duration time.Duration

// D returns d as a time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON writes d as Decode reads it.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON accepts the string form only; a bare number has no unit here.
func (d *Duration) UnmarshalJSON(raw []byte) error { return d.parse(raw, "") }

func (d *Duration) parse(raw []byte, unit string) error {
	if len(raw) > 0 && raw[0] == '"' {
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return err
		}
		if v, err := time.ParseDuration(s); err == nil && s != "0" {
			return d.store(v)
		}
		if _, err := strconv.ParseFloat(s, 64); err == nil && unit != "" {
			return d.parse([]byte(s), unit) // a number out of ${env:NAME}
		}
		return fmt.Errorf(`wants a duration such as "250ms" or "30s", not %q`, s)
	}
	number, err := strconv.ParseFloat(string(raw), 64)
	if err != nil {
		return fmt.Errorf(`wants a duration such as "250ms" or "30s", not %s`, kindOf(raw))
	}
	switch unit {
	case "ms":
		return d.store(time.Duration(number * float64(time.Millisecond)))
	case "s":
		return d.store(time.Duration(number * float64(time.Second)))
	}
	return fmt.Errorf(`wants a duration with a unit, such as "%ss", not the number %s`, raw, raw)
}

func (d *Duration) store(v time.Duration) error {
	if v < 0 {
		return fmt.Errorf("is %s; must not be negative", v)
	}
	*d = Duration(v)
	return nil
}

// Size is a number of bytes: a number, or a string such as "64MiB" or "1 MB".
type Size int64

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"kib", 1 << 10},
	{"mib", 1 << 20},
	{"gib", 1 << 30},
	{"kb", 1e3},
	{"mb", 1e6},
	{"gb", 1e9},
	{"b", 1},
	{"", 1},
}

// MarshalJSON writes the number of bytes.
func (s Size) MarshalJSON() ([]byte, error) { return strconv.AppendInt(nil, int64(s), 10), nil }

// UnmarshalJSON reads a number or a string with a unit.
func (s *Size) UnmarshalJSON(raw []byte) error {
	text := strings.ToLower(strings.Trim(string(raw), `"`))
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if err != nil || n < 0 {
			break
		}
		*s = Size(n * float64(u.bytes))
		return nil
	}
	return fmt.Errorf(`wants a size such as 65536 or "64MiB", not %s`, kindOf(raw))
}

// List is a list of strings, written as a JSON list or as one string in which
// commas separate the items.
type List []string

// UnmarshalJSON reads either form; items are trimmed and empty ones dropped.
func (l *List) UnmarshalJSON(raw []byte) error {
	var items []string
	if len(raw) > 0 && raw[0] == '"' {
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return err
		}
		items = strings.Split(s, ",")
	} else if err := json.Unmarshal(raw, &items); err != nil {
		return err
	}
	*l = nil
	for _, item := range items {
		if item = strings.TrimSpace(item); item != "" {
			*l = append(*l, item)
		}
	}
	return nil
}

// Ints is a list of whole numbers; a single number is a list of one.
type Ints []int

// UnmarshalJSON reads either form.
func (l *Ints) UnmarshalJSON(raw []byte) error {
	var one int
	if json.Unmarshal(raw, &one) == nil {
		*l = Ints{one}
		return nil
	}
	var many []int
	if err := json.Unmarshal(raw, &many); err != nil {
		return err
	}
	*l = many
	return nil
}

const redacted = "[redacted]"

// Secret is a string that does not print.
type Secret string

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the secret from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalJSON hides the secret.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// UnmarshalJSON reads a string, and keeps the value out of its error.
func (s *Secret) UnmarshalJSON(raw []byte) error {
	var v string
	if json.Unmarshal(raw, &v) != nil {
		return errors.New("wants a string")
	}
	*s = Secret(v)
	return nil
}

// Secrets is a list of secrets, for rotation: a list or a single string.
type Secrets []Secret

// UnmarshalJSON reads either form.
func (s *Secrets) UnmarshalJSON(raw []byte) error {
	var one Secret
	if json.Unmarshal(raw, &one) == nil {
		*s = Secrets{one}
		return nil
	}
	var many []Secret
	if json.Unmarshal(raw, &many) != nil {
		return errors.New("wants a string or a list of strings")
	}
	*s = many
	return nil
}
