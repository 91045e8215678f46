package relaycmd

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

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
