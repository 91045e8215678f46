// Package stream reads the payload of a large row in slices, by one statement: whole, or while
// it is sent.
package stream

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var (
	//go:embed payload.sql
	payloadSQL string
	//go:embed stream.sql
	streamSQL string
)

const (
	// Above is the length in bytes of a row from which less memory is held if it is a
	// stream.
	Above = 8 << 20
	// Patience is how long a statement waits for a slow sink. It keeps a snapshot and a
	// connection, so it ends then, and is repeated after the last slice.
	Patience = 5 * time.Second

	slice = 1 << 20 // bytes
	// ahead is the number of slices that are read before the sink takes them. The client
	// holds one more, and a copy of it: see [relay.StreamMemory].
	ahead = 3
	// longest bounds a statement for a sink that is never quite so slow.
	longest = time.Minute
)

// Row reads the event in a row again for each attempt to send it. A row of an outbox does not
// change. If it does, or is deleted, the attempt fails with a permanent error: the parts that
// the far end has got would not fit together.
type Row struct {
	Connect  func(ctx context.Context) (db scan.DB, release func(), err error)
	Patience time.Duration

	sql, what string
	id        int64
	version   string // the transaction that wrote the row
	length    int64  // of the payload
	from, to  int64  // the first and last byte of the event; counted from 1
}

// Outline reads the payload of a row, of length bytes, without holding it. It returns what is
// known of its only event. That has a stream, made of r, if r is not nil and the payload is
// JSON by its type.
func Outline(ctx context.Context, db scan.DB, t *table.Table, id, length int64, r *Row) (rows.Event, error) {
	version := "xmin::text"
	if typ := t.Type(t.Columns.Payload); r == nil || t.NoEncoding || typ != "json" && typ != "jsonb" {
		r, version = new(Row), "NULL::text"
	}
	r.id, r.length, r.from, r.to, r.what = id, length, 1, length, fmt.Sprintf("row %d of %s", id, t)
	r.sql = statement(t, strings.ReplaceAll(streamSQL, "{version}", version))
	found := rows.NewOutline(t.Plain)
	err := r.query(ctx, db, r.from, func(v [][]byte) (bool, error) {
		r.version = string(v[colVersion])
		_, err := found.Write(v[colSlice])
		return true, err
	})
	e, from, to, ok := found.Event()
	if ok && r.Connect != nil {
		r.from, r.to = from+1, to
		e.Stream = &relay.Stream{RowLength: to - from, OpenRow: r.open}
	}
	return e, err
}

var errOrder = errors.New("slices of the payload came out of order")

func statement(t *table.Table, sql string) string {
	payload := pg.Identifier(t.Columns.Payload)
	if t.Type(t.Columns.Payload) != "bytea" {
		payload = "convert_to(" + payload + "::text, 'UTF8')"
	}
	return strings.NewReplacer("{payload}", payload, "{table}", t.Qualified(), "{id}", t.ID(), "{slice}", strconv.Itoa(slice)).Replace(sql)
}

// Columns of a statement: the version of the row, the length of its payload, and a slice with
// the byte that it begins at.
const (
	colVersion = iota
	colLength
	colAt
	colSlice
)

var formats = []int16{colSlice: 1}

// query passes the slices of the row from byte at on to each, with the version of the row.
// Each may return false to skip the rest.
func (r *Row) query(ctx context.Context, db scan.DB, at int64, each func(v [][]byte) (bool, error)) error {
	args := []string{strconv.FormatInt(r.id, 10), strconv.FormatInt(at, 10), strconv.FormatInt(r.to, 10)}
	return db.Query(ctx, r.sql, formats, args, each)
}

// open implements [relay.Stream.OpenRow].
func (r *Row) open(ctx context.Context) (io.ReadCloser, error) {
	s := &reader{Row: r, slices: make(chan []byte, ahead), spare: make(chan []byte, ahead)}
	for range ahead {
		s.spare <- nil
	}
	ctx, s.stop = context.WithCancel(ctx)
	s.start = func() { go s.run(ctx) }
	return s, nil
}

// reader reads ahead in a goroutine of its own, from the first Read to Close. Both
// may be called at the same time.
type reader struct {
	*Row
	once   sync.Once
	start  func() // the goroutine
	stop   context.CancelFunc
	slices chan []byte // closed at the end
	spare  chan []byte // buffers to fill
	err    error       // why slices was closed; nil = all was read

	buffer, rest []byte // the slice in hand
}

func (r *reader) run(ctx context.Context) {
	defer close(r.slices)
	for at := r.from; at <= r.to && r.err == nil; {
		at, r.err = r.statement(ctx, at)
	}
}

// statement reads from byte at on, and returns the byte after the last one that it has
// passed on.
func (r *reader) statement(ctx context.Context, at int64) (next int64, err error) {
	if err := r.drained(ctx); err != nil {
		return at, err
	}
	db, release, err := r.Connect(ctx)
	if err != nil {
		return at, fmt.Errorf("read %s: connect: %w", r.what, err)
	}
	defer release()
	running, end := context.WithCancel(ctx)
	defer end()
	next, began, slow := at, time.Now(), false
	err = r.query(running, db, at, func(v [][]byte) (bool, error) {
		if err := r.check(v, next); err != nil {
			return false, err
		}
		if slow = next > at && time.Since(began) > longest; !slow {
			select {
			case buffer := <-r.spare:
				r.slices <- append(buffer[:0], v[colSlice]...)
				next += int64(len(v[colSlice]))
				return true, nil
			case <-time.After(r.Patience):
				slow = true
			case <-ctx.Done():
			}
		}
		end() // spares the rest, which the client would read and drop
		return false, nil
	})
	switch {
	case ctx.Err() != nil:
		return next, ctx.Err()
	case slow:
		return next, nil
	case err == nil && next <= r.to:
		err = relay.Permanent(fmt.Errorf("read %s: it was deleted before it was sent whole", r.what))
	case err != nil && !relay.IsPermanent(err):
		err = fmt.Errorf("read %s: %w", r.what, err)
	}
	return next, err
}

// drained waits until the sink has taken all that was read, so that a statement for a slow
// sink passes on more than one slice.
func (r *reader) drained(ctx context.Context) error {
	var buffers [ahead][]byte
	for i := range buffers {
		select {
		case buffers[i] = <-r.spare:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, b := range buffers {
		r.spare <- b
	}
	return nil
}

// check returns an error if the slice v does not belong at byte next of the row.
func (r *reader) check(v [][]byte, next int64) error {
	length, err := rows.ParseID(v[colLength])
	at, err2 := rows.ParseID(v[colAt])
	switch {
	case err != nil || err2 != nil || at != next:
		return errOrder
	case string(v[colVersion]) != r.version || length != r.length:
		return relay.Permanent(fmt.Errorf("read %s: it was changed before it was sent whole; retry the dead letter", r.what))
	}
	return nil
}

// Read implements [io.Reader].
func (r *reader) Read(p []byte) (int, error) {
	r.once.Do(r.start)
	for len(r.rest) == 0 {
		if r.buffer != nil {
			r.spare <- r.buffer
			r.buffer = nil
		}
		buffer, ok := <-r.slices
		if !ok {
			if r.err != nil {
				return 0, r.err
			}
			return 0, io.EOF
		}
		r.buffer, r.rest = buffer, buffer
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Close implements [io.Closer].
func (r *reader) Close() error {
	r.stop()
	r.once.Do(func() { close(r.slices) })
	for range r.slices { // until its goroutine has ended
	}
	return nil
}

// Payload returns the payload of a row and its length in bytes. The payload is nil
// if it is longer than limit. The length is -1 if there is no such row.
func Payload(ctx context.Context, db scan.DB, t *table.Table, id, limit int64) (payload []byte, length int64, err error) {
	length = -1
	sql := statement(t, payloadSQL)
	args := []string{strconv.FormatInt(id, 10), strconv.FormatInt(limit, 10)}
	err = db.Query(ctx, sql, []int16{0, 0, 1}, args, func(v [][]byte) (bool, error) {
		at, err := rows.ParseID(v[1])
		if err == nil {
			length, err = rows.ParseID(v[0])
		}
		if err != nil || v[2] == nil {
			return false, err
		}
		if payload == nil {
			payload = make([]byte, 0, length)
		}
		if at != int64(len(payload))+1 {
			return false, errOrder
		}
		payload = append(payload, v[2]...)
		return true, nil
	})
	return payload, length, err
}
