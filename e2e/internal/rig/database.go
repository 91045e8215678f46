package rig

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
)

// Database is a database of a test's own. It has the relay's schema, a table called
// events with an outbox on it, and an inbox called back.
type Database struct {
	Name string
	URL  string
	Pool *pgxpool.Pool
}

// NewDatabase creates a database on server, as a user would: by the migrate
// command and the SQL functions.
func NewDatabase(t testing.TB, server, name string, migrate func(ctx context.Context, db string) error) *Database {
	t.Helper()
	ctx := t.Context()
	if err := admin(ctx, server, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	d := &Database{Name: name, URL: u.String()}
	if err := migrate(ctx, d.URL); err != nil {
		t.Fatal(err)
	}
	if d.Pool, err = pgxpool.New(ctx, d.URL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Pool.Close()
		if err := admin(context.WithoutCancel(ctx), server, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	d.Exec(t, `CREATE TABLE events (id bigint PRIMARY KEY, k text NOT NULL, seq bigint NOT NULL, note text NOT NULL)`)
	d.Exec(t, `SELECT pgtrickle.enable_outbox('public.events')`)
	d.Exec(t, `SELECT pgtrickle.create_inbox('back')`)
	// n counts the inbox's rows in the order in which they were written.
	d.Exec(t, `ALTER TABLE pgtrickle.back ADD COLUMN n bigserial`)
	return d
}

func admin(ctx context.Context, server, sql string) error {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

// Exec runs one statement.
func (d *Database) Exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	if _, err := d.Pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// Forward starts a pipeline from the events to the sink that keys describe. It writes
// the flat form, in which the names of nested keys begin with the sink's name.
func (d *Database) Forward(t testing.TB, name, sink string, keys, more map[string]any) {
	t.Helper()
	config := map[string]any{"stream_table": "public.events", "sink_type": sink, "key_field": "k"}
	for k, v := range keys {
		config[strings.ReplaceAll(sink, "-", "_")+"_"+k] = v
	}
	maps.Copy(config, more)
	if err := d.pipeline(t.Context(), "outbox", name, config); err != nil {
		t.Fatal(err)
	}
}

// Reverse starts a pipeline from the source that keys describe to the inbox,
// written in the nested form.
func (d *Database) Reverse(t testing.TB, name, source string, keys, more map[string]any) {
	t.Helper()
	if err := d.SetReverse(t.Context(), name, source, keys, more); err != nil {
		t.Fatal(err)
	}
}

// SetReverse does what Reverse does, or changes a pipeline that there is.
func (d *Database) SetReverse(ctx context.Context, name, source string, keys, more map[string]any) error {
	nested := map[string]any{"type": source}
	maps.Copy(nested, keys)
	config := map[string]any{"source": nested, "inbox_table": "back", "id_scope": "global"} // the tests know messages by their ids
	maps.Copy(config, more)
	return d.pipeline(ctx, "inbox", name, config)
}

func (d *Database) pipeline(ctx context.Context, kind, name string, config map[string]any) error {
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if _, err = d.Pool.Exec(ctx, `SELECT pgtrickle.set_relay_`+kind+`($1, config => $2::jsonb)`, name, string(raw)); err == nil {
		_, err = d.Pool.Exec(ctx, `SELECT pgtrickle.enable_relay($1)`, name)
	}
	return err
}

// Insert writes events in one transaction, and a statement.
func (d *Database) Insert(ctx context.Context, events []Event) error {
	raw, err := json.Marshal(events)
	if err != nil {
		return err
	}
	_, err = d.Pool.Exec(ctx, `INSERT INTO events SELECT * FROM json_populate_recordset(NULL::events, $1::json)`, string(raw))
	return err
}

// Events returns what was committed, whichever answer a writer got.
func (d *Database) Events(ctx context.Context) ([]Event, error) {
	rows, _ := d.Pool.Query(ctx, `SELECT id, k, seq, note FROM events ORDER BY id`)
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Event])
}

// Inbox returns what has come back, in the order in which it was written.
func (d *Database) Inbox(ctx context.Context) ([]ends.Record, error) {
	rows, _ := d.Pool.Query(ctx, `SELECT event_id, coalesce(aggregate_id, ''), convert_to(payload::text, 'UTF8') `+
		`FROM pgtrickle.back ORDER BY n`)
	return pgx.CollectRows(rows, pgx.RowToStructByPos[ends.Record])
}

// Forwarded reports whether every outbox row is confirmed by the far end: whether
// the public offset of the pipeline has come to the outbox's end.
func (d *Database) Forwarded(ctx context.Context, pipeline string) (done bool, err error) {
	err = d.Pool.QueryRow(ctx, `
		SELECT coalesce((SELECT max(last_change_id) FROM pgtrickle.relay_consumer_offsets WHERE pipeline_id = $1), 0)
		    >= coalesce((SELECT max(id) FROM pgtrickle.outbox_events), 0)`, pipeline).Scan(&done)
	return done, err
}

// Returned counts the distinct rows of the inbox.
func (d *Database) Returned(ctx context.Context) (n int, err error) {
	err = d.Pool.QueryRow(ctx, `SELECT count(*) FROM pgtrickle.back`).Scan(&n)
	return n, err
}

// Until polls until done is true, and fails the test when that takes too long or
// ends in an error that lasts.
func Until(t testing.TB, patience time.Duration, what string, done func(ctx context.Context) (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := Poll(ctx, done); err != nil {
		t.Fatalf("%s: not within %v: %v", what, patience, err)
	}
}

// Progress is a text that changes whenever one of the database's pipelines gets a new owner
// or stores that it has settled messages.
func (d *Database) Progress(ctx context.Context) (text string, err error) {
	err = d.Pool.QueryRow(ctx, `SELECT coalesce(string_agg(format('%s %s %s %s', epoch, last_id, delivered + skipped, dead_lettered), ', '
		ORDER BY direction, pipeline), '') FROM pgtrickle.relay_cursors`).Scan(&text)
	return text, err
}

// ErrStalled is what Await returns once nothing moves.
var ErrStalled = errors.New("no progress")

// stalled is how many looks in a row, 100 ms and a query apart, may see no progress. They
// last 2 minutes on an idle machine, and longer where the relays take longer, too.
const stalled = 1200

// Await is Poll for a pipeline of d: it goes on as long as there is progress, however slow.
func (d *Database) Await(ctx context.Context, done func(ctx context.Context) (bool, error)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	last, looks := "", 0
	err := Poll(ctx, func(ctx context.Context) (bool, error) {
		ok, err := done(ctx)
		if ok {
			return true, err
		}
		now, perr := d.Progress(ctx)
		if looks++; perr == nil && now != last {
			last, looks = now, 0
		}
		if looks == stalled {
			cancel(ErrStalled)
		}
		return false, errors.Join(err, perr)
	})
	if err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return nil
}

// Until awaits done, and fails the test once nothing moves.
func (d *Database) Until(t testing.TB, what string, done func(ctx context.Context) (bool, error)) {
	t.Helper()
	if err := d.Await(t.Context(), done); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// Poll returns nil once done is true, or an error when ctx ends.
func Poll(ctx context.Context, done func(ctx context.Context) (bool, error)) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done(ctx)
		if ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}
