package relaycfg

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// Access is what the configurations of pipelines may reach in the relay's process.
// The operator sets it, because others may set pipelines. The zero value permits
// nothing.
type Access struct {
	// Control is [net.Dialer]'s, for all connections of a pipeline except those to the
	// relay's own database. nil permits all addresses.
	Control func(network, address string, c syscall.RawConn) error

	env      []string // names, or prefixes that end in "*"
	dirs     []string // absolute
	operator bool     // the values are the operator's own: no variable is reserved

	resolved map[string]string // reference by value, if not nil; see [Concealer]
}

// NewAccess permits the variables and directories of two comma-separated lists. A
// variable that ends in "*" is a prefix.
func NewAccess(env, files string) (*Access, error) {
	a := &Access{env: list(env)}
	for _, dir := range list(files) {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, err
		}
		a.dirs = append(a.dirs, abs)
	}
	return a, nil
}

func list(text string) []string {
	fields := strings.Split(text, ",")
	for i := range fields {
		fields[i] = strings.TrimSpace(fields[i])
	}
	return slices.DeleteFunc(fields, func(s string) bool { return s == "" })
}

// Unrestricted permits all files, and all variables except the relay's own.
func Unrestricted() *Access { return &Access{env: []string{"*"}, dirs: []string{"/"}} }

// reserved matches the variables of the relay itself and of libpq, which hold the
// login of its database.
var reserved = regexp.MustCompile(`^(PGTRICKLE_RELAY_.*|PG[A-Z0-9]+)$`)

func (a *Access) lookup(name string) (string, error) {
	switch {
	case !a.operator && reserved.MatchString(name):
		return "", errors.New("belongs to the relay itself; use another variable")
	case !slices.ContainsFunc(a.env, func(allowed string) bool {
		prefix, isPrefix := strings.CutSuffix(allowed, "*")
		return name == allowed || isPrefix && strings.HasPrefix(name, prefix)
	}):
		return "", errors.New("not permitted; start the relay with --allow-env " + name)
	}
	value, ok := os.LookupEnv(name)
	if !ok {
		return "", errors.New("environment variable is not set")
	}
	return value, nil
}

// errOutside does not quote the path, which may come from a secret.
var errOutside = errors.New("is outside the permitted directories; start the relay with --allow-files DIRECTORY")

// locate returns the permitted directory that contains path after all links, and the
// rest of the path in it.
func (a *Access) locate(path string) (dir, rest string, err error) {
	if slices.Contains(strings.Split(path, "/"), "..") {
		return "", "", errors.New(`contains ".."; write the path without it`)
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", "", err
	}
	target, err := realPath(path)
	if err != nil {
		return "", "", errOutside
	}
	for _, dir := range a.dirs {
		if dir, err = filepath.EvalSymlinks(dir); err != nil {
			continue
		}
		if rest, err = filepath.Rel(dir, target); err == nil && filepath.IsLocal(rest) {
			return dir, rest, nil
		}
	}
	return "", "", errOutside
}

// realPath resolves the links of an absolute path. The last elements need not exist.
func realPath(path string) (string, error) {
	target, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return target, err
	}
	if _, dangling := os.Lstat(path); dangling == nil {
		return "", err
	}
	dir, err := realPath(filepath.Dir(path))
	return filepath.Join(dir, filepath.Base(path)), err
}

// devices need no permission: they are the process's own, or hold nothing.
var devices = []string{"/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/null"}

// CheckFiles refuses raw if one of its keys that name a file leads out of the permitted
// directories. PEM text in place of a path passes.
func (a *Access) CheckFiles(keys []Key, raw json.RawMessage) error {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(raw, &values); err != nil {
		return err
	}
	var errs []error
	for spelled, value := range values {
		var path string
		key, ok := Find(keys, spelled)
		if !ok || !key.File || json.Unmarshal(value, &path) != nil || path == "" || key.PEM && IsPEM(path) || slices.Contains(devices, path) {
			continue
		}
		if _, _, err := a.locate(path); err != nil {
			errs = append(errs, Errorf(spelled, "%s", err))
		}
	}
	return errors.Join(errs...)
}

// Open opens a permitted file for reading, with further flags. No link leads out of the
// permitted directories, not even one that was made after CheckFiles.
func (a *Access) Open(path string, flags int) (*os.File, error) {
	if slices.Contains(devices, path) {
		return os.OpenFile(path, os.O_RDONLY|flags, 0)
	}
	root, rest, err := a.openRoot(path)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // it was only read
	return root.OpenFile(rest, os.O_RDONLY|flags, 0)
}

// openRoot opens the permitted directory that contains path, and returns the rest of the
// path in it.
func (a *Access) openRoot(path string) (root *os.Root, rest string, err error) {
	dir, rest, err := a.locate(path)
	if err == nil {
		root, err = os.OpenRoot(dir)
	}
	return root, rest, err
}

// IsPEM reports whether the value of a key that takes a file or PEM text is the text.
func IsPEM(value string) bool { return strings.Contains(value, "-----BEGIN ") }

// ReadFile reads a permitted, regular file of at most [MaxFile] bytes. It never blocks on
// a FIFO or a device. The type is checked before the open, which could have side effects,
// and again after it, because the file may have changed in between.
func (a *Access) ReadFile(path string) ([]byte, error) {
	root, rest, err := a.openRoot(path)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // it was only read
	return readRegular(root, rest)
}
