package brokers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"

	"github.com/jackc/pgx/v5"
	"github.com/testcontainers/testcontainers-go"
)

// Standby starts an asynchronous standby of a PostgreSQL server of the fleet and
// returns it once it can be read.
func (f *Fleet) Standby(ctx context.Context, primary string) (*Server, error) {
	of, name := f.Server(primary), primary+"-standby"
	sp := of.spec
	sp.env += "_STANDBY"
	sp.request = func(opts Options, port int) testcontainers.ContainerRequest {
		req := of.spec.request(opts, port)
		// A folder of its own, which no image's entrypoint uses.
		req.User, req.Entrypoint = "postgres", []string{"sh", "-ec", `
			mkdir -p -m 700 /tmp/standby
			until [ -e /tmp/standby/standby.signal ]; do sleep 0.05; done
			exec "$@" -D /tmp/standby -c listen_addresses='*' -c unix_socket_directories=/tmp`, "sh"}
		return req
	}
	sp.started = func(ctx context.Context, s *Server) error { return of.copyTo(ctx, s) }
	if err := f.run(ctx, name, of.Image, sp); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return f.Server(name), nil
}

// copyTo makes a base backup in the standby's folder. It needs only tar:
// not every image has pg_basebackup.
func (s *Server) copyTo(ctx context.Context, standby *Server) error {
	// Trust in all databases does not include replication.
	if _, err := s.Exec(ctx, "sh", "-c", `echo 'host replication all all trust' >>"$PGDATA/pg_hba.conf"`); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, s.URL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `SELECT pg_reload_conf(), pg_backup_start('standby', true)`); err != nil {
		return err
	}
	// A file that changes meanwhile is tar's status 1, and what WAL is for.
	const pack = `tar -C "$PGDATA" -c --exclude='./pg_wal/0*' --exclude=./postmaster.pid . || [ $? = 1 ]`
	if err := s.pipe(ctx, standby, pack, `tar -C /tmp/standby -x`); err != nil {
		return err
	}
	var label string
	if err := conn.QueryRow(ctx, `SELECT labelfile FROM pg_backup_stop(false)`).Scan(&label); err != nil {
		return err
	}
	_, err = standby.Exec(ctx, "sh", "-ec", `cd /tmp/standby
		printf %s "$1" >backup_label
		echo "primary_conninfo = 'host=$2 user=postgres'" >>postgresql.auto.conf
		touch standby.signal`, "sh", label, s.id()[:12]) // its name in the containers' network
	return err
}

// pipe gives what a shell command prints in one container to another in the other.
func (s *Server) pipe(ctx context.Context, to *Server, from, into string) error {
	var errs bytes.Buffer
	read := exec.CommandContext(ctx, "docker", "exec", s.id(), "sh", "-c", from)
	write := exec.CommandContext(ctx, "docker", "exec", "-i", to.id(), "sh", "-c", into)
	read.Stderr, write.Stderr = &errs, &errs
	var err error
	if write.Stdin, err = read.StdoutPipe(); err != nil {
		return err
	}
	if err := read.Start(); err != nil {
		return err
	}
	if err := errors.Join(write.Run(), read.Wait()); err != nil {
		return fmt.Errorf("copy %s to %s: %w: %s", s.Name, to.Name, err, errs.String())
	}
	return nil
}
