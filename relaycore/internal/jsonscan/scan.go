package jsonscan

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth is encoding/json's.
const maxDepth = 10000

var errDepth = errors.New("JSON is nested too deeply")

// space returns the index of the first byte from i on that is not white space.
func space(text []byte, i int) int {
	for i < len(text) && text[i] <= ' ' && (text[i] == ' ' || text[i] == '\n' || text[i] == '\t' || text[i] == '\r') {
		i++
	}
	return i
}

// skip returns the index after the value that begins at i.
func skip(text []byte, i, depth int) (int, error) {
	if i >= len(text) {
		return i, syntax(text, i)
	}
	switch c := text[i]; c {
	case '"':
		i, _, err := scanString(text, i)
		return i, err
	case '{', '[':
		return skipNested(text, i, depth)
	case 't':
		return literal(text, i, "true")
	case 'f':
		return literal(text, i, "false")
	case 'n':
		return literal(text, i, "null")
	default:
		return number(text, i)
	}
}

// skipNested walks over an object or array without recursion's cost for what is
// not nested.
func skipNested(text []byte, i, depth int) (int, error) {
	if depth++; depth > maxDepth {
		return i, errDepth
	}
	object := text[i] == '{'
	closing := byte(']')
	if object {
		closing = '}'
	}
	i = space(text, i+1)
	if at(text, i) == closing {
		return i + 1, nil
	}
	for {
		var err error
		if object {
			if at(text, i) != '"' {
				return i, syntax(text, i)
			}
			if i, _, err = scanString(text, i); err != nil {
				return i, err
			}
			i = space(text, i)
			if at(text, i) != ':' {
				return i, syntax(text, i)
			}
			i = space(text, i+1)
		}
		if i, err = skip(text, i, depth); err != nil {
			return i, err
		}
		i = space(text, i)
		switch at(text, i) {
		case ',':
			i = space(text, i+1)
		case closing:
			return i + 1, nil
		default:
			return i, syntax(text, i)
		}
	}
}

func literal(text []byte, i int, want string) (int, error) {
	if len(text)-i >= len(want) && string(text[i:i+len(want)]) == want {
		return i + len(want), nil
	}
	for j := range len(want) {
		if at(text, i+j) != want[j] {
			return i + j, syntax(text, i+j)
		}
	}
	return i, syntax(text, i)
}

func number(text []byte, i int) (int, error) {
	if at(text, i) == '-' {
		i++
	}
	switch c := at(text, i); {
	case c == '0':
		i++
	case '1' <= c && c <= '9':
		i = digits(text, i)
	default:
		return i, syntax(text, i)
	}
	if at(text, i) == '.' {
		end := digits(text, i+1)
		if end == i+1 {
			return end, syntax(text, end)
		}
		i = end
	}
	if c := at(text, i); c == 'e' || c == 'E' {
		i++
		if c := at(text, i); c == '+' || c == '-' {
			i++
		}
		end := digits(text, i)
		if end == i {
			return end, syntax(text, end)
		}
		i = end
	}
	return i, nil
}

func digits(text []byte, i int) int {
	for i < len(text) && text[i]-'0' <= 9 {
		i++
	}
	return i
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// special marks, by its highest bit, the first byte of w that is a quote, a
// backslash, a control character or outside ASCII. Bytes after that one may be
// marked too, without cause.
func special(w uint64) uint64 {
	quote, slash := w^ones*'"', w^ones*'\\'
	return ((quote - ones) | (slash - ones) | (w - ones*0x20) | w) & highs
}

// scanString returns the index after the string that begins at i, and whether
// it has neither escapes nor bytes outside ASCII.
func scanString(text []byte, i int) (end int, plain bool, err error) {
	plain = true
	i++
	for {
		for i+8 <= len(text) { // eight bytes at once
			if mark := special(binary.LittleEndian.Uint64(text[i:])); mark != 0 {
				i += bits.TrailingZeros64(mark) / 8
				break
			}
			i += 8
		}
		if i >= len(text) {
			return i, plain, syntax(text, i)
		}
		switch c := text[i]; {
		case c == '"':
			return i + 1, plain, nil
		case c == '\\':
			plain = false
			if i, err = escape(text, i); err != nil {
				return i, plain, err
			}
		case c < 0x20:
			return i, plain, syntax(text, i)
		default:
			plain = plain && c < utf8.RuneSelf
			i++
		}
	}
}

// escape returns the index after the escape that begins at i.
func escape(text []byte, i int) (int, error) {
	switch at(text, i+1) {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2, nil
	case 'u':
		for j := i + 2; j < i+6; j++ {
			if c := at(text, j); c-'0' > 9 && c-'a' > 5 && c-'A' > 5 {
				return j, syntax(text, j)
			}
		}
		return i + 6, nil
	}
	return i + 1, syntax(text, i+1)
}

// appendUnquoted appends the meaning of the inside of a valid JSON string. What
// is not valid UTF-8, or half of a surrogate pair, becomes U+FFFD.
func appendUnquoted(dst, s []byte) []byte {
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '\\' && s[i+1] == 'u':
			r := hex4(s[i+2:])
			i += 6
			if utf16.IsSurrogate(r) {
				if i+6 <= len(s) && s[i] == '\\' && s[i+1] == 'u' {
					if pair := utf16.DecodeRune(r, hex4(s[i+2:])); pair != utf8.RuneError {
						r = pair
						i += 6
					}
				}
				if utf16.IsSurrogate(r) {
					r = utf8.RuneError
				}
			}
			dst = utf8.AppendRune(dst, r)
		case c == '\\':
			dst = append(dst, unescape(s[i+1]))
			i += 2
		case c < utf8.RuneSelf:
			dst = append(dst, c)
			i++
		default:
			r, size := utf8.DecodeRune(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += size
		}
	}
	return dst
}

func unescape(c byte) byte {
	switch c {
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c
}

func hex4(s []byte) rune {
	var r rune
	for _, c := range s[:4] {
		switch {
		case c >= 'a':
			c -= 'a' - 10
		case c >= 'A':
			c -= 'A' - 10
		default:
			c -= '0'
		}
		r = r<<4 | rune(c)
	}
	return r
}
