package stdoutrelay

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	relaytest.Refusals(t, refusals, func(answer string, _ bool) error {
		switch answer {
		case notFile:
			return classify(errNotFile)
		case notLine:
			return refusals.Classify(errors.New(answer), notLine, false)
		}
		for n := range unix.Errno(200) {
			if unix.ErrnoName(n) == answer {
				return classify(&os.PathError{Op: "write", Path: "f", Err: n})
			}
		}
		t.Errorf("no error of the system is called %q", answer)
		return nil
	})
}
