package store_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// All SQL on the relay's own tables is in this package. Migrations create the tables.
func TestOnlyTheStoreKnowsItsTables(t *testing.T) {
	t.Parallel()
	tables := regexp.MustCompile(`pgtrickle\.relay_(cursors|consumer_offsets|dead_letters|instances)\b|pg_(try_)?advisory_(un)?lock\b`)
	const root = "../.."
	exempt := map[string]bool{"internal/store": true, "internal/migrate": true, "internal/exttest": true}
	files := 0
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		switch {
		case entry.IsDir() && exempt[name]:
			return filepath.SkipDir
		case entry.IsDir(), strings.HasSuffix(name, "_test.go"), !strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, ".sql"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		if found := tables.Find(text); found != nil {
			t.Errorf("%s has SQL on %s, which belongs in internal/store", name, found)
		}
		return nil
	})
	if err != nil || files < 50 {
		t.Errorf("looked through %d files, %v; want all of relaycore", files, err)
	}
}
