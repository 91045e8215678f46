package relay

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"
)

// rowField returns the JSON value of the member called name of the object row, and
// whether there is one. Of repeated members the last counts, as in jsonb. It decodes
// nothing: a template is rendered for every message.
//
// A row is valid JSON, which the engine checks. In text that is not, rowField finds
// nothing or a part of that text.
func rowField(row []byte, name string) (value []byte, ok bool) {
	i := skipSpace(row, 0)
	if byteAt(row, i) != '{' {
		return nil, false
	}
	for i = skipSpace(row, i+1); byteAt(row, i) == '"'; {
		member := i
		if i = stringEnd(row, i); i < 0 {
			return nil, false
		}
		found := isString(row[member:i], name)
		if i = skipSpace(row, i); byteAt(row, i) != ':' {
			return nil, false
		}

		start := skipSpace(row, i+1)
		if i = valueEnd(row, start); i < 0 {
			return nil, false
		}
		if found {
			value, ok = row[start:i], true
		}
		if i = skipSpace(row, i); byteAt(row, i) == ',' {
			i = skipSpace(row, i+1)
		}
	}
	return value, ok && byteAt(row, i) == '}'
}

// appendText appends what a JSON value means as text: a string's characters, nothing
// for null, and the JSON itself for all else.
func appendText(dst, value []byte) []byte {
	switch {
	case len(value) > 1 && value[0] == '"':
		if inside := value[1 : len(value)-1]; isPlain(inside) {
			return append(dst, inside...)
		}
		return append(dst, unquote(value)...)
	case string(value) == "null":
		return dst
	}
	return append(dst, value...)
}

// isString reports whether the JSON string quoted means s.
func isString(quoted []byte, s string) bool {
	inside := quoted[1 : len(quoted)-1]
	return string(inside) == s || bytes.IndexByte(inside, '\\') >= 0 && unquote(quoted) == s
}

// isPlain reports whether the inside of a JSON string means itself.
func isPlain(inside []byte) bool {
	return bytes.IndexByte(inside, '\\') < 0 && utf8.Valid(inside)
}

func unquote(quoted []byte) (s string) {
	_ = json.Unmarshal(quoted, &s) // a row is valid JSON
	return s
}

// valueEnd returns the index after the value that begins at i, or -1.
func valueEnd(row []byte, i int) int {
	switch byteAt(row, i) {
	case '"':
		return stringEnd(row, i)
	case '{', '[':
		return nestedEnd(row, i)
	}
	start := i
	for i < len(row) && row[i] > ' ' && row[i] != ',' && row[i] != '}' && row[i] != ']' {
		i++
	}
	if i == start {
		return -1
	}
	return i
}

// nestedEnd returns the index after the object or array that begins at i, or -1.
func nestedEnd(row []byte, i int) int {
	for depth := 0; i < len(row); {
		switch row[i] {
		case '"':
			if i = stringEnd(row, i); i < 0 {
				return -1
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
		i++
	}
	return -1
}

// stringEnd returns the index after the string that begins at i, or -1.
func stringEnd(row []byte, i int) int {
	for i++; i < len(row); i++ {
		switch row[i] {
		case '"':
			return i + 1
		case '\\':
			i++
		}
	}
	return -1
}

func skipSpace(row []byte, i int) int {
	for i < len(row) && (row[i] == ' ' || row[i] == '\n' || row[i] == '\t' || row[i] == '\r') {
		i++
	}
	return i
}

// byteAt returns 0 behind the end, which is no character of JSON's grammar.
func byteAt(row []byte, i int) byte {
	if i < len(row) {
		return row[i]
	}
	return 0
}
