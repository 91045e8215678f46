package stdoutrelay

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var (
	errClosed       = errors.New("the sink is closed")
	errSourceClosed = errors.New("the source is closed")
	errNotFile      = errors.New("is not a regular file")
)

// classify marks what an operator has to cure. A full disk is transient.
func classify(err error) error {
	if errors.Is(err, unix.ELOOP) {
		return relay.Fatal(fmt.Errorf("%w; set path to the file that the link leads to", err))
	}
	if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) || errors.Is(err, errNotFile) {
		return relay.Fatal(err)
	}
	return err
}
