package stdoutrelay

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var errNotFile = errors.New("is not a regular file")

// Refusals that are no error of the system.
const (
	notLine = "not a line"
	notFile = "not a regular file"
)

// refusals are the names of the system's errors. The file is always that of the
// configuration.
var refusals = relay.Refusals{
	{Kind: relay.KindTooLarge, Note: "a line has any length; max_line bounds those of a source"},
	{Kind: relay.KindInvalid, Blame: relay.BlameMessage, Answer: notLine, Note: "a body that is not JSON and does not fit on a line"},
	{Kind: relay.KindBadName, Blame: relay.BlamePipeline, Answer: "ENAMETOOLONG|EINVAL"},
	{Kind: relay.KindMissing, Blame: relay.BlamePipeline, Answer: "ENOENT|ENOTDIR", Note: "the directory"},
	{Kind: relay.KindDenied, Blame: relay.BlamePipeline, Answer: "EACCES|EPERM"},
	{Kind: relay.KindWrongType, Blame: relay.BlamePipeline, Answer: "ELOOP", Note: "set stdout_path to the file that the link leads to"},
	{Kind: relay.KindWrongType, Blame: relay.BlamePipeline, Answer: "EISDIR|" + notFile},
	{Kind: relay.KindFull, Blame: relay.BlameNothing, Answer: "ENOSPC|EDQUOT|EFBIG|EMFILE|ENFILE"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "EIO|EROFS|ESTALE|EAGAIN|EPIPE", Note: "disk, or the reader"},
	{Kind: relay.KindCredentials, Note: "there is no login"},
	{Kind: relay.KindSetup, Note: "there is no version"},
}

// classify marks err by the table.
func classify(err error) error {
	answer := ""
	errno, isErrno := errors.AsType[unix.Errno](err)
	switch {
	case errors.Is(err, errNotFile):
		answer = notFile
	case isErrno:
		answer = unix.ErrnoName(errno)
	case errors.Is(err, os.ErrPermission): // of the confined paths
		answer = "EACCES"
	case errors.Is(err, os.ErrNotExist):
		answer = "ENOENT"
	}
	if answer == "ELOOP" {
		err = fmt.Errorf("%w; %s", err, refusals.Find(answer).Note)
	}
	return refusals.Classify(err, answer, false)
}
