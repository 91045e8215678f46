package relay

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Template is a string with variables in braces: {stream_table}, {op},
// {outbox_id}, {refresh_id} and {row.FIELD}. The zero Template renders "".
// As a field of a configuration it is decoded from a JSON string.
type Template struct {
	text  string
	parts []part
	fixed string // the whole rendering when there are no variables
}

type part struct {
	literal string // or, when empty, a variable
	name    string
	field   string // of {row.FIELD}
}

var templateVars = []string{"stream_table", "op", "outbox_id", "refresh_id"}

// ParseTemplate returns an error for a variable that does not exist, with its name, and
// for a brace that is not closed, with its place. "{{" stands for "{" and
// "}}" for "}". No error quotes text itself: it may have a secret in it, such as
// the token in a webhook's URL.
func ParseTemplate(text string) (Template, error) {
	t := Template{text: text}
	var lit strings.Builder
	flush := func() {
		if lit.Len() > 0 {
			t.parts = append(t.parts, part{literal: lit.String()})
			lit.Reset()
		}
	}
	for rest := text; rest != ""; {
		switch {
		case strings.HasPrefix(rest, "{{"), strings.HasPrefix(rest, "}}"):
			lit.WriteByte(rest[0])
			rest = rest[2:]
		case rest[0] == '{':
			end := strings.IndexByte(rest, '}')
			if end < 0 {
				return Template{}, fmt.Errorf("no closing brace for the one at character %d; \"{{\" stands for a brace itself", position(text, rest))
			}
			name := rest[1:end]
			field, isRow := strings.CutPrefix(name, "row.")
			if (!isRow && !slices.Contains(templateVars, name)) || (isRow && field == "") {
				return Template{}, unknownVariable(name, position(text, rest))
			}
			flush()
			t.parts = append(t.parts, part{name: name, field: field})
			if !isRow {
				t.parts[len(t.parts)-1].field = ""
			}
			rest = rest[end+1:]
		default:
			lit.WriteByte(rest[0])
			rest = rest[1:]
		}
	}
	flush()
	if len(t.parts) == 1 && t.parts[0].literal != "" {
		t.fixed = t.parts[0].literal
	}
	return t, nil
}

// position is where rest, the end of text, begins: the first character is 1.
func position(text, rest string) int { return utf8.RuneCountInString(text[:len(text)-len(rest)]) + 1 }

func unknownVariable(name string, at int) error {
	what := fmt.Sprintf("unknown variable {%s}", name)
	if strings.ContainsFunc(name, func(r rune) bool { return r != '_' && r != '.' && !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
		what = fmt.Sprintf("no variable in the braces at character %d", at) // it was not meant for one
	}
	return fmt.Errorf("%s; there are {%s} and {row.FIELD}", what, strings.Join(templateVars, "}, {"))
}

// UnmarshalText makes a Template decodable from JSON.
func (t *Template) UnmarshalText(b []byte) (err error) {
	*t, err = ParseTemplate(string(b))
	return err
}

// MarshalText returns the template's source.
func (t Template) MarshalText() ([]byte, error) { return []byte(t.text), nil }

// String returns the template's source.
func (t Template) String() string { return t.text }

// IsZero reports whether the template is empty.
func (t Template) IsZero() bool { return t.text == "" }

// Fixed reports whether the template has no variables.
func (t Template) Fixed() bool { return len(t.parts) == 0 || t.fixed != "" }

// UsesRow reports whether the template looks into the row.
func (t Template) UsesRow() bool {
	return slices.ContainsFunc(t.parts, func(p part) bool { return p.field != "" })
}

// Fields returns the fields of the row that the template renders.
func (t Template) Fields() (fields []string) {
	for _, p := range t.parts {
		if p.field != "" {
			fields = append(fields, p.field)
		}
	}
	return fields
}

// PerMessage reports whether two rows of one outbox row can render differently
// for a reason other than their operation.
func (t Template) PerMessage() bool {
	return slices.ContainsFunc(t.parts, func(p part) bool {
		return p.field != "" || p.name == "outbox_id" || p.name == "refresh_id"
	})
}

// Append renders t for m onto dst. A field that the row lacks is an error of
// class permanent: no retry will give the row that field. With an error dst comes
// back as it was. A null renders as nothing, a string as its text, all else as
// its JSON.
func (t Template) Append(dst []byte, m *Message) ([]byte, error) {
	return t.AppendEscaped(dst, m, nil)
}

// AppendEscaped is Append with the value of each variable passed through escape. So a
// value cannot change the form of the whole, such as a URL. The template's own text is
// left as it is.
func (t Template) AppendEscaped(dst []byte, m *Message, escape func(string) string) ([]byte, error) {
	before := len(dst)
	for _, p := range t.parts {
		start := len(dst)
		switch {
		case p.literal != "":
			dst = append(dst, p.literal...)
		case p.field != "":
			raw, ok := rowField(m.Row, p.field)
			if !ok {
				return dst[:before], Permanent(fmt.Errorf("the row of %s has no field %q", m.ID, p.field))
			}
			dst = appendText(dst, raw)
		case p.name == "stream_table":
			dst = append(dst, m.StreamTable...)
		case p.name == "op":
			dst = append(dst, m.Op...)
		case p.name == "outbox_id":
			dst = append(dst, m.outboxIDText()...)
		case p.name == "refresh_id":
			dst = append(dst, m.RefreshID...)
		}
		if escape != nil && p.literal == "" {
			dst = append(dst[:start], escape(string(dst[start:]))...)
		}
	}
	return dst, nil
}

// Pattern returns t with wildcard in place of each variable. Its own text has a backslash in
// front of the characters of special.
func (t Template) Pattern(wildcard, special string) string {
	var b strings.Builder
	for _, p := range t.parts {
		if p.literal == "" {
			b.WriteString(wildcard)
		}
		for _, c := range p.literal {
			if strings.ContainsRune(special, c) {
				b.WriteByte('\\')
			}
			b.WriteRune(c)
		}
	}
	return b.String()
}

// Render is Append into a string of its own.
func (t Template) Render(m *Message) (string, error) {
	if t.fixed != "" || len(t.parts) == 0 {
		return t.fixed, nil
	}
	b, err := t.Append(make([]byte, 0, 64), m)
	return string(b), err
}
