package relaycfg

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
)

var reference = regexp.MustCompile(`\$\{(env|ENV|file):([^}]*)\}`)

// MaxFile is the largest file, in bytes, that a reference may name.
const MaxFile = 1 << 20

// HasReference reports whether [Access.Expand] would replace anything in raw.
func HasReference(raw json.RawMessage) bool { return reference.Match(raw) }

// References lists the references in raw.
func References(raw json.RawMessage) []string { return reference.FindAllString(string(raw), -1) }

// Expand replaces every ${env:NAME}, ${ENV:NAME} and ${file:/path} inside the
// strings of the JSON value raw. A file's trailing newline is dropped. The error names the
// reference and never its value: it is not permitted, its variable is not set, or its file
// cannot be read.
func (a *Access) Expand(raw json.RawMessage) (json.RawMessage, error) {
	if !HasReference(raw) {
		return raw, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	v, err := a.expand(v, "")
	if err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

func (a *Access) expand(v any, path string) (any, error) {
	var err error
	switch v := v.(type) {
	case string:
		s, err := a.expandString(v)
		if err != nil {
			return nil, Errorf(strings.TrimPrefix(path, "."), "%s", err)
		}
		return s, nil
	case []any:
		for i := range v {
			if v[i], err = a.expand(v[i], fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for k := range v {
			if v[k], err = a.expand(v[k], path+"."+k); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

// ExpandString replaces the references in a value of the operator, such as a flag. It
// may refer to everything.
func ExpandString(s string) (string, error) {
	return (&Access{env: []string{"*"}, dirs: []string{"/"}, operator: true}).expandString(s)
}

func (a *Access) expandString(s string) (string, error) {
	var failure error
	out := reference.ReplaceAllStringFunc(s, func(ref string) string {
		m := reference.FindStringSubmatch(ref)
		var value string
		var err error
		if m[1] == "file" {
			var b []byte
			b, err = a.ReadFile(m[2])
			value = strings.TrimRight(string(b), "\r\n")
		} else {
			value, err = a.lookup(m[2])
		}
		if err != nil {
			failure = fmt.Errorf("%s: %w", ref, err)
		} else if a.resolved != nil {
			a.resolved[value] = ref
		}
		return value
	})
	return out, failure
}

func readRegular(root *os.Root, path string) ([]byte, error) {
	info, err := root.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}

	f, err := root.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	if info, err = f.Stat(); err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}

	b, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err == nil && len(b) > MaxFile {
		err = errors.New("file is larger than 1 MiB")
	}
	return b, err
}

var errNotRegular = errors.New("not a regular file")
