package adversary

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// patience is how long nothing may arrive, after the last commit, before what is
// missing counts as lost.
const patience = 15 * time.Second

// Run fights one war and reports. The database at opts.URL must be a fresh one.
func Run(ctx context.Context, opts Options) (*Report, error) {
	opts.defaults()
	w := &war{opts: opts, book: newBook()}
	rep := &Report{Strategy: opts.Strategy}
	if err := w.setUp(ctx, rep); err != nil {
		return nil, fmt.Errorf("set up: %w", err)
	}
	begun := time.Now()
	reading, stopReading := context.WithCancel(ctx)
	defer stopReading()
	readers := make(chan error, 1)
	go func() { readers <- w.readers(reading, rep) }()

	writing, stopWriting := context.WithCancel(ctx)
	defer stopWriting()
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.run(writing)
	}()
	err := w.until(ctx, begun, readers)
	stopWriting()
	<-written
	if err == nil {
		err = w.drained(ctx, readers)
	}
	if err == nil && opts.Strategy != Naive {
		rep.Unsettled, err = w.unsettled(ctx)
	}
	stopReading()
	if err == nil || errors.Is(err, context.Canceled) {
		err = <-readers
	}
	if f := w.failure.Load(); f != nil {
		err = errors.Join(err, *f)
	}
	rep.Took = time.Since(begun)
	rep.RolledBack, rep.Prepared = w.rolledBack.Load(), w.prepared.Load()
	w.book.close(rep)
	return rep, err
}

func (w *war) setUp(ctx context.Context, rep *Report) error {
	conn, err := pgx.Connect(ctx, w.opts.URL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, schema); err != nil {
		return err
	}
	if w.opts.Strategy == Window {
		if _, err := conn.Exec(ctx, xidColumn); err != nil {
			return err
		}
	}
	if _, err := conn.Exec(ctx, fmt.Sprintf("ALTER SEQUENCE pgtrickle.outbox_ledger_id_seq CACHE %d", w.opts.Cache)); err != nil {
		return err
	}
	const settings = "SELECT current_setting('server_version'), current_setting('max_prepared_transactions')::int > 0"
	return conn.QueryRow(ctx, settings).Scan(&rep.Server, &w.canPrepare)
}

// until waits for the end of the writing: time and rows have both been reached.
func (w *war) until(ctx context.Context, begun time.Time, readers chan error) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-readers:
			readers <- err
			return fmt.Errorf("reader: %w", err)
		case <-tick.C:
		}
		committed, delivered, _ := w.book.progress()
		if n%10 == 0 {
			fmt.Fprintf(w.opts.Log, "%s %4.0fs committed %d delivered %d\n", w.opts.Strategy, time.Since(begun).Seconds(), committed, delivered)
		}
		if w.failure.Load() != nil || (time.Since(begun) >= w.opts.For && committed >= w.opts.Rows) {
			return nil
		}
	}
}

// drained waits until everything has arrived, or nothing arrives for a while.
func (w *war) drained(ctx context.Context, readers chan error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		committed, delivered, idle := w.book.progress()
		if delivered >= committed || idle > patience {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-readers:
			readers <- err
			return err
		case <-tick.C:
		}
	}
}

// unsettled waits until the reader reports all ids as settled, also those that were rolled
// back. It returns the number of ids that it never reports.
func (w *war) unsettled(ctx context.Context) (ids int64, err error) {
	for deadline := time.Now().Add(patience); ; {
		conn, err := pgx.Connect(ctx, w.opts.URL) // a new one each time, since sessions may be waited for
		if err != nil {
			return 0, err
		}
		err = conn.QueryRow(ctx, `SELECT s.last_value - c.last_id FROM pgtrickle.outbox_ledger_id_seq s, cursor c`).Scan(&ids)
		_ = conn.Close(ctx)
		if err != nil || ids == 0 || time.Now().After(deadline) {
			return ids, err
		}
		select {
		case <-ctx.Done():
			return ids, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// readers runs one reader after the other, each until it is killed.
func (w *war) readers(ctx context.Context, rep *Report) error {
	r := rand.New(rand.NewPCG(w.opts.Seed, 1<<32))
	for ctx.Err() == nil {
		life := time.Duration(300+r.IntN(2500)) * time.Millisecond
		if w.opts.NoKill {
			life = time.Hour
		}
		killed, err := w.reader(ctx, life)
		if err != nil {
			return err
		}
		if killed {
			rep.Kills++
		}
	}
	return nil
}

// reader runs one, and takes what it publishes as a broker would.
func (w *war) reader(ctx context.Context, life time.Duration) (killed bool, err error) {
	command := w.opts.Reader
	if command == nil {
		self, err := os.Executable()
		if err != nil {
			return false, err
		}
		command = []string{self}
	}
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx // it is killed below, and by nothing else
	cmd.Env = append(os.Environ(), envURL+"="+w.opts.URL, envStrategy+"="+w.opts.Strategy)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	received := make(chan struct{})
	go func() {
		defer close(received)
		in := bufio.NewReaderSize(pipe, 64<<10)
		var b [16]byte
		for {
			if _, err := io.ReadFull(in, b[:]); err != nil {
				return
			}
			w.book.deliver(event{int64(binary.BigEndian.Uint64(b[:8])), int64(binary.BigEndian.Uint64(b[8:]))})
		}
	}()
	timer := time.NewTimer(life)
	defer timer.Stop()
	select {
	case <-timer.C:
		killed = true
	case <-ctx.Done():
	case <-received: // it ended by itself
		err := cmd.Wait()
		if state, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && state.Signal() == syscall.SIGKILL {
			return true, nil // by its own hand
		}
		return false, fmt.Errorf("reader ended: %w: %s", err, complaint.Bytes())
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return killed, err
	}
	<-received
	_ = cmd.Wait() // it was killed
	return killed, nil
}
