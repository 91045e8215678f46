package e2e

import (
	"fmt"
	"strings"
	"sync"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// Columns of the matrix.
const (
	forward   = "sink (binary)"
	reverse   = "source (binary)"
	roundTrip = "there and back (image)"
)

// Matrix is the table at the end of make e2e.
type Matrix struct {
	mu    sync.Mutex
	cells map[[2]string]string
}

// Set records the ledger of a test that has passed.
func (m *Matrix) Set(backend, column string, l rig.Ledger) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cells == nil {
		m.cells = make(map[[2]string]string)
	}
	m.cells[[2]string{backend, column}] = fmt.Sprintf("ok: %d rows, lost %d, reordered %d, dup %d", l.Written, l.Lost, l.Reordered, l.Duplicated)
}

// Table renders the matrix, and reports whether every cell is filled.
func (m *Matrix) Table() (text string, complete bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	b.WriteString("\nEvery cell: real server, 1,000 keys in order, 1 MiB and non-ASCII rows, relay killed with -9 in the middle;\nbinaries: the broker restarted in the middle, too.\n\n")
	columns := []string{forward, reverse, roundTrip}
	fmt.Fprintf(&b, "%-10s", "backend")
	for _, c := range columns {
		fmt.Fprintf(&b, " | %-45s", c)
	}
	b.WriteByte('\n')
	complete = true
	for _, k := range ends.Kinds() {
		fmt.Fprintf(&b, "%-10s", k.Name)
		for _, c := range columns {
			cell := m.cells[[2]string{k.Name, c}]
			switch {
			case cell == "" && c == reverse && k.Source == "":
				cell = "-"
			case cell == "":
				cell, complete = "FAILED or not run", false
			}
			fmt.Fprintf(&b, " | %-45s", cell)
		}
		b.WriteByte('\n')
	}
	return b.String(), complete
}
