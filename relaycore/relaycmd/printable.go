package relaycmd

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// terminal escapes control and invisible characters in what is written to it, but for line
// ends and tabs. Texts of servers are in errors, notes and warnings; raw, they could
// send commands to a terminal. The escapes are those of JSON.
type terminal struct{ io.Writer }

func (t terminal) Write(p []byte) (int, error) {
	safe := func(r rune) bool { return unicode.IsGraphic(r) || r == '\n' || r == '\t' }
	if utf8.Valid(p) && bytes.IndexFunc(p, func(r rune) bool { return !safe(r) }) < 0 {
		return t.Writer.Write(p)
	}
	var out strings.Builder
	for _, r := range string(p) {
		if safe(r) {
			out.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&out, `\u%04x`, unit)
		}
	}
	_, err := io.WriteString(t.Writer, out.String())
	return len(p), err
}

// table prints rows with columns of one width each.
type table struct{ *tabwriter.Writer }

func newTable(w io.Writer) table { return table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

// row prints values, times in UTC and strings as printable.
func (t table) row(values ...any) {
	for i, v := range printable(values...) {
		if i > 0 {
			fmt.Fprint(t, "\t")
		}
		if at, ok := v.(time.Time); ok {
			v = at.UTC().Format(time.RFC3339)
		}
		fmt.Fprint(t, v)
	}
	fmt.Fprintln(t)
}

func orDash(s string) string { return cmp.Or(s, "-") }

// printable quotes the strings among args that hold control or invisible characters.
// Keys, subjects and errors come from publishers and far ends: raw, they could write
// rows of their own or send commands to the terminal.
func printable(args ...any) []any {
	for i, a := range args {
		if s, ok := a.(string); ok && !isPrintable(s) {
			args[i] = strconv.QuoteToGraphic(s)
		}
	}
	return args
}

func isPrintable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) }) < 0
}

// printableBody returns a JSON body on one line, with such characters escaped.
func printableBody(body json.RawMessage) string {
	if isPrintable(string(body)) {
		return string(body)
	}
	var line bytes.Buffer
	if json.Compact(&line, body) != nil {
		return strconv.QuoteToGraphic(string(body))
	}
	return printable(line.String())[0].(string)
}
