package codec

import (
	"bytes"
	"strconv"

	"github.com/grove/pgtrickle-relay/relaycore/internal/jsonscan"
)

// maxExponent bounds the zeros that a key gets; that of a double precision is 308.
const maxExponent = 400

// appendKeyText appends the text of a JSON value as jsonb has it: a number with an
// exponent is written out. So outboxes of type json and of type jsonb have the same keys.
func appendKeyText(dst, value []byte) []byte {
	e := bytes.IndexAny(value, "eE")
	if e < 0 || value[0] != '-' && (value[0] < '0' || value[0] > '9') {
		return jsonscan.AppendText(dst, value)
	}
	exponent, err := strconv.Atoi(string(value[e+1:]))
	if err != nil || exponent < -maxExponent || exponent > maxExponent {
		return jsonscan.AppendText(dst, value)
	}
	digits := value[:e]
	if digits[0] == '-' {
		dst, digits = append(dst, '-'), digits[1:]
	}
	whole, fraction, _ := bytes.Cut(digits, []byte("."))
	all := append(append([]byte(nil), whole...), fraction...)
	point := len(whole) + exponent // in all
	if point <= 0 {
		all = append(bytes.Repeat([]byte("0"), 1-point), all...)
		point = 1
	}
	if missing := point - len(all); missing > 0 {
		all = append(all, bytes.Repeat([]byte("0"), missing)...)
	}
	all, point = trimZeros(all, point)
	dst = append(dst, all[:point]...)
	if point < len(all) {
		dst = append(append(dst, '.'), all[point:]...)
	}
	return dst
}

// trimZeros drops zeros before all but the last digit before the point.
func trimZeros(all []byte, point int) ([]byte, int) {
	for point > 1 && all[0] == '0' {
		all, point = all[1:], point-1
	}
	return all, point
}
