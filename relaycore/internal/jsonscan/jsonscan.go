// Package jsonscan finds values inside JSON text without decoding it. Every
// function returns slices of its input and copies nothing.
package jsonscan

import "encoding/json"

// Field returns the raw value of the member called name of the JSON object obj,
// and whether there is one. Of repeated members the last counts, as in jsonb.
func Field(obj []byte, name string) (value []byte, ok bool) {
	var m map[string]json.RawMessage
	if json.Unmarshal(obj, &m) != nil {
		return nil, false
	}
	value, ok = m[name]
	return value, ok
}

// AppendText appends what a JSON value means as text: a string's characters,
// nothing for null, and the JSON itself for all else.
func AppendText(dst, value []byte) []byte {
	if len(value) > 0 && value[0] == '"' {
		var s string
		if json.Unmarshal(value, &s) == nil {
			return append(dst, s...)
		}
	}
	if string(value) == "null" {
		return dst
	}
	return append(dst, value...)
}
