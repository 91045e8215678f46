package relaycfg

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
)

var reference = regexp.MustCompile(`\$\{(env|ENV|file):([^}]*)\}`)

// Expand replaces every ${env:NAME}, ${ENV:NAME} and ${file:/path} inside the
// strings of the JSON value raw. A file's trailing newline is dropped. A variable
// that is not set or a file that cannot be read is an error that names it and
// never its value.
func Expand(raw json.RawMessage) (json.RawMessage, error) {
	if !reference.Match(raw) {
		return raw, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	v, err := expand(v, "")
	if err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

func expand(v any, path string) (any, error) {
	var err error
	switch v := v.(type) {
	case string:
		s, err := ExpandString(v)
		if err != nil {
			return nil, Errorf(strings.TrimPrefix(path, "."), "%s", err)
		}
		return s, nil
	case []any:
		for i := range v {
			if v[i], err = expand(v[i], fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for k := range v {
			if v[k], err = expand(v[k], path+"."+k); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

// ExpandString is [Expand] for a single string.
func ExpandString(s string) (string, error) {
	var failure error
	out := reference.ReplaceAllStringFunc(s, func(ref string) string {
		m := reference.FindStringSubmatch(ref)
		if m[1] == "file" {
			b, err := os.ReadFile(m[2])
			if err != nil {
				failure = fmt.Errorf("%s: %w", ref, err)
			}
			return strings.TrimRight(string(b), "\r\n")
		}
		value, ok := os.LookupEnv(m[2])
		if !ok {
			failure = fmt.Errorf("%s: environment variable is not set", ref)
		}
		return value
	})
	return out, failure
}
