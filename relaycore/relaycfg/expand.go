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

// HasReference reports whether [Expand] would replace anything in raw.
func HasReference(raw json.RawMessage) bool { return reference.Match(raw) }

// Expand replaces every ${env:NAME}, ${ENV:NAME} and ${file:/path} inside the
// strings of the JSON value raw. A file's trailing newline is dropped. A variable
// that is not set or a file that cannot be read is an error that names it and
// never its value.
func Expand(raw json.RawMessage) (json.RawMessage, error) {
	if !HasReference(raw) {
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
			b, err := readFile(m[2])
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

// readFile reads a regular file of at most [MaxFile] bytes. It never blocks on a FIFO
// or a device: the type is checked before the open, which could have side effects, and
// again after it, because the path may have changed in between.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}

	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
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
