package relaycfg

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Concealer replaces the secrets of one configuration in texts: the value of a
// reference by the reference, and any other secret by "[redacted]". So an error of a
// backend or of its far end shows none, whatever it quotes.
type Concealer struct {
	shown   map[string]string // what stands for a secret, in each form that texts may quote it in
	replace *strings.Replacer
}

// minSecret is the shortest value that is replaced. A shorter one is a number or a
// word that texts have for other reasons.
const minSecret = 5

// NewConcealer returns a concealer that knows no secrets.
func NewConcealer() *Concealer {
	return &Concealer{shown: make(map[string]string), replace: strings.NewReplacer()}
}

// Add makes c conceal the secrets of raw, which a resolves. A reference that cannot be
// resolved has no value to conceal.
func (c *Concealer) Add(a *Access, keys []Key, raw json.RawMessage) {
	recording := *a
	recording.resolved = make(map[string]string)
	expanded, err := recording.Expand(raw)
	for value, ref := range recording.resolved {
		c.add(value, ref)
	}
	var values map[string]json.RawMessage
	if err == nil && json.Unmarshal(expanded, &values) == nil {
		for spelled, value := range values {
			if key, ok := Find(keys, spelled); ok && key.Secret {
				var secrets Secrets
				_ = secrets.UnmarshalJSON(value) // a value of another type is refused elsewhere
				for _, s := range secrets {
					c.add(s.Reveal(), redacted)
				}
			}
		}
	}
	longestFirst := func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) }
	var pairs []string
	for _, value := range slices.SortedFunc(maps.Keys(c.shown), longestFirst) {
		pairs = append(pairs, value, c.shown[value])
	}
	c.replace = strings.NewReplacer(pairs...)
}

// password matches that of a URL, also of one that does not parse.
var password = regexp.MustCompile(`://[^/@\s]*?:([^\s]*)@`)

// add conceals a secret. In a URL that is no reference the secret is the password and
// the query; an operator needs its host.
func (c *Concealer) add(value, shown string) {
	parts := []string{value}
	if strings.Contains(value, "://") {
		if shown == redacted {
			parts = nil
		}
		if m := password.FindStringSubmatch(value); m != nil {
			parts = append(parts, m[1])
		}
		if u, err := url.Parse(value); err == nil {
			word, _ := u.User.Password()
			parts = append(parts, u.RawQuery, word)
			if shown != redacted {
				parts = append(parts, u.RequestURI())
			}
		}
	}
	for _, p := range parts {
		quoted := strconv.Quote(p)
		for _, form := range []string{p, quoted[1 : len(quoted)-1], url.QueryEscape(p), url.PathEscape(p), strings.ToLower(p)} {
			if _, known := c.shown[form]; len(form) >= minSecret && !known {
				c.shown[form] = shown
			}
		}
	}
}

// Text returns text without secrets.
func (c *Concealer) Text(text string) string { return c.replace.Replace(text) }

// Error returns err with a text without secrets. It matches what err matches.
func (c *Concealer) Error(err error) error {
	if err == nil {
		return nil
	}
	if text := c.Text(err.Error()); text != err.Error() {
		return &concealed{err, text}
	}
	return err
}

type concealed struct {
	error
	text string
}

func (e *concealed) Error() string { return e.text }
func (e *concealed) Unwrap() error { return e.error }

// Logger returns a logger that writes to l without secrets.
func (c *Concealer) Logger(l *slog.Logger) *slog.Logger {
	return slog.New(&concealing{l.Handler(), c})
}

type concealing struct {
	slog.Handler
	c *Concealer
}

// Handle implements [slog.Handler].
func (h *concealing) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, h.c.Text(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(h.attr(a))
		return true
	})
	return h.Handler.Handle(ctx, clean)
}

// WithAttrs implements [slog.Handler].
func (h *concealing) WithAttrs(attrs []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clean[i] = h.attr(a)
	}
	return &concealing{h.Handler.WithAttrs(clean), h.c}
}

// WithGroup implements [slog.Handler].
func (h *concealing) WithGroup(name string) slog.Handler {
	return &concealing{h.Handler.WithGroup(name), h.c}
}

func (h *concealing) attr(a slog.Attr) slog.Attr {
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(h.c.Text(v.String()))
	case slog.KindAny:
		text := fmt.Sprint(v.Any())
		if clean := h.c.Text(text); clean != text {
			a.Value = slog.StringValue(clean)
		}
	case slog.KindGroup:
		var clean []any
		for _, member := range v.Group() {
			clean = append(clean, h.attr(member))
		}
		return slog.Group(a.Key, clean...)
	default: // numbers and times
	}
	return a
}
