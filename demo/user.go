package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// runAsUser runs the demo again as an unprivileged user. That user may not read
// root's home, so the binaries are copied.
func runAsUser(ctx context.Context, o options) error {
	u, err := someUser()
	if err != nil {
		return err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return err
	}
	show.line("PostgreSQL does not run as root: the demo continues as user " + u.Username + ".")
	self, err := os.Executable()
	if err != nil {
		return err
	}
	demo, relay := filepath.Join(o.state, "demo"), filepath.Join(o.state, "pgtrickle-relay")
	if err := errors.Join(copyFile(demo, self), copyFile(relay, o.relay)); err != nil {
		return err
	}
	if err := errors.Join(os.Chown(o.state, int(uid), int(gid)), os.Chmod(o.state, 0o755)); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, demo,
		"-relay", relay, "-state", o.state, "-writing", o.writing.String(), fmt.Sprintf("-fetch-postgres=%t", o.fetch))
	cmd.Dir = o.state
	cmd.Env = append(os.Environ(), "HOME="+o.state, "USER="+u.Username, "TMPDIR="+o.state)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it stops its servers
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return errReported
		}
		return err
	}
	return nil
}

// errReported is a failure that was printed already.
var errReported = errors.New("the demo failed")

func someUser() (*user.User, error) {
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			return u, nil
		}
	}
	return nil, errors.New("find an unprivileged user: there are neither \"postgres\" nor \"nobody\"; run the demo as a user other than root")
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
