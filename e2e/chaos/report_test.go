package chaos

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// report is the table of all ledgers.
type report struct {
	mu    sync.Mutex
	lines []line
}

type line struct {
	test, backend, direction string
	ledger                   rig.Ledger
	harm                     string
	ok                       bool
}

func (r *report) add(l line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, l)
}

func (r *report) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(r.lines, func(a, b line) int {
		return strings.Compare(a.test+" "+a.direction+" "+a.backend, b.test+" "+b.direction+" "+b.backend)
	})
	var b strings.Builder
	b.WriteString("| test | backend | direction | written | lost | duplicated | reordered | what was done |\n|---|---|---|---|---|---|---|---|\n")
	for _, l := range r.lines {
		mark := ""
		if !l.ok {
			mark = " **FAILED**"
		}
		fmt.Fprintf(&b, "| %s%s | %s | %s | %d | %d | %d | %d | %s |\n",
			l.test, mark, l.backend, l.direction, l.ledger.Written, l.ledger.Lost, l.ledger.Duplicated, l.ledger.Reordered, l.harm)
	}
	return b.String()
}

// writeTo puts the table between the marks that the page has for it.
func (r *report) writeTo(page string) error {
	root, err := brokers.Root()
	if err != nil {
		return err
	}
	path := filepath.Join(root, page)
	old, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		old, err = []byte("# Guarantees\n\n<!-- chaos -->\n<!-- /chaos -->\n"), nil
	}
	if err != nil {
		return err
	}
	section := regexp.MustCompile(`(?s)<!-- chaos -->.*<!-- /chaos -->`)
	if !section.Match(old) {
		return fmt.Errorf("%s has no place for the table: <!-- chaos --> … <!-- /chaos -->", page)
	}
	text := fmt.Sprintf("<!-- chaos -->\nWritten by `make chaos CHAOS_WRITE=1` on %s: seed %d, storm of %v.\n\n%s<!-- /chaos -->",
		time.Now().UTC().Format(time.DateOnly), set.seed, set.duration, r.text())
	return os.WriteFile(path, section.ReplaceAllLiteral(old, []byte(text)), 0o644)
}
