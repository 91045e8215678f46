package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// TestWorlds lets two databases, with a table and two pipelines of the same names each,
// write to one far end. Under the writers the tables are dropped, created and renamed,
// their outboxes too, and partitions are attached and detached. The far end is deleted
// and created again, and relays and PostgreSQL are killed. Each row arrives once by each
// pipeline. A table that is created without enable_outbox has rows that nothing records:
// a relay names the table.
func TestWorlds(t *testing.T) {
	var cases []*worldsCase
	for _, k := range set.backends {
		if k.Server != "" && k.Name != "sqs" { // a file belongs to one pipeline; the stand-in for SQS is slow
			cases = append(cases, newWorldsCase(t, k))
		}
	}
	stop, cancel := context.WithTimeout(t.Context(), set.duration)
	defer cancel()
	var wg sync.WaitGroup
	var shaken string
	wg.Go(func() {
		shaken = storm(t, stop, set.seed+2, 20*time.Second, serverHarms(fleet.Server("pg18"), "PostgreSQL"))
	})
	for _, c := range cases {
		wg.Go(func() { c.run(stop) })
	}
	wg.Wait()
	for _, c := range cases {
		t.Run(c.kind.Name, func(t *testing.T) { c.judge(t, shaken) })
	}
}

// worldsCase is one far end and the databases that write to it.
type worldsCase struct {
	t      *testing.T
	kind   ends.Kind
	end    ends.End
	worlds []*world
	lives  [][]ends.Record // what arrived in each earlier life of the far end
	harm   string
}

// world is one database. Its table written has each row of events that was ever
// committed, by the same transaction.
type world struct {
	c          *worldsCase
	db         *rig.Database
	crew       *crew
	flows      []*flow
	partitions int
	replaced   int // outboxes that another one followed

	forgotten bool // the table was created without enable_outbox, and no relay has named it
	alarms    int  // in the logs, before that
	named     int  // tables without capture that a relay has named
}

const (
	createTable = `CREATE TABLE events (id bigint PRIMARY KEY, k text NOT NULL, seq bigint NOT NULL, note text NOT NULL) PARTITION BY RANGE (id);
		CREATE TABLE events_rest PARTITION OF events DEFAULT`
	createEvents = createTable + `; SELECT pgtrickle.enable_outbox('public.events')`
	// The table missed has the rows that are written while nothing records them.
	createMissed = `CREATE TABLE missed (id bigint);
		CREATE FUNCTION miss() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO missed VALUES (NEW.id); RETURN NULL; END'`
)

func newWorldsCase(t *testing.T, k ends.Kind) *worldsCase {
	t.Helper()
	p, err := rig.Binary(k.Binary)
	if err != nil {
		t.Fatal(err)
	}
	name := "worlds_" + strings.ReplaceAll(k.Name, "-", "_")
	c := &worldsCase{t: t, kind: k}
	if c.end, err = k.New(t.Context(), ends.Env{Name: name, Dir: t.TempDir(), Server: fleet.Server(k.Server), Migrate: p.Migrate}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.end.Close)
	for i := range 2 {
		w := &world{c: c, db: rig.NewDatabase(t, fleet.Server("pg18").URL, fmt.Sprint(name, "_", i+1), p.Migrate)}
		w.flows = newFlows(set.seed, "world") // the same numbers and keys in both
		w.db.Exec(t, `SELECT pgtrickle.disable_outbox('public.events')`)
		w.db.Exec(t, `CREATE TABLE written AS TABLE events`)
		w.db.Exec(t, `DROP TABLE events`)
		if err := w.alter(t.Context(), createEvents+"; "+createMissed); err != nil {
			t.Fatal(err)
		}
		for _, pipeline := range pipelines {
			w.db.Forward(t, pipeline, k.Name, c.end.Sink(), nil)
		}
		w.crew = newCrew(t, p, w.db, 1)
		c.worlds = append(c.worlds, w)
	}
	return c
}

var pipelines = []string{"out", "again"}

func (c *worldsCase) run(stop context.Context) {
	var wg sync.WaitGroup
	var harms []harm
	for _, w := range c.worlds {
		for _, f := range w.flows {
			wg.Go(func() {
				for stop.Err() == nil {
					ctx, cancel := context.WithTimeout(context.WithoutCancel(stop), 10*time.Second)
					_ = w.write(ctx, f.next()) // what was committed is in the table written
					cancel()
					pause(stop, time.Duration(20+f.rng.IntN(100))*time.Millisecond)
				}
			})
		}
		harms = append(append(harms, w.crew.harms()...), w.harms()...)
	}
	if end, ok := c.end.(ends.Harmed); ok {
		for _, h := range end.Harms() {
			if h.Remade {
				harms = append(harms, harm{h.Name, 8, func(ctx context.Context, rng *rand.Rand) error { return c.remake(ctx, rng, h) }})
			}
		}
	}
	wg.Go(func() { c.harm = storm(c.t, stop, set.seed, 2*time.Second, harms) })
	wg.Wait()
}

// write inserts events and their account in one transaction.
func (w *world) write(ctx context.Context, events []rig.Event) error {
	for i := range events {
		events[i].Note = w.db.Name
	}
	raw, err := json.Marshal(events)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, w.db.Pool, func(tx pgx.Tx) error {
		for _, table := range []string{"events", "written"} {
			if _, err := tx.Exec(ctx, `INSERT INTO `+table+` SELECT * FROM json_populate_recordset(NULL::`+table+`, $1::json)`, string(raw)); err != nil {
				return err
			}
		}
		return nil
	})
}

// forget drops the table and creates it again without enable_outbox.
func (w *world) forget(ctx context.Context) error {
	if w.forgotten {
		return nil // and the alarm that a relay may have logged since still counts
	}
	before := w.logged()
	err := w.alter(ctx, `DROP TABLE events; `+createTable+`;
		CREATE TRIGGER missed AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION miss()`)
	if err == nil {
		w.forgotten, w.alarms = true, before
	}
	return err
}

// remember does what the log of a relay advises, once it names the table.
func (w *world) remember(ctx context.Context) error {
	if !w.forgotten || w.logged() <= w.alarms {
		return nil
	}
	err := w.mend(ctx, `DROP TRIGGER IF EXISTS missed ON events; SELECT pgtrickle.outbox_upgrade('outbox_events')`)
	if err == nil {
		w.forgotten = false
		w.named++
	}
	return err
}

// logged counts the warnings of all relays that nothing records the table's changes.
func (w *world) logged() (n int) {
	for _, r := range w.crew.all {
		log, err := r.FullLog()
		if err != nil {
			w.c.t.Error(err)
		}
		n += strings.Count(string(log), `problem="public.events has no trigger that records its changes"`)
	}
	return n
}

// alter is mend for a table whose changes are recorded. It does nothing to another one.
func (w *world) alter(ctx context.Context, sql string) error {
	if w.forgotten {
		return nil
	}
	return w.mend(ctx, sql)
}

// mend runs statements in one transaction. It tries again where a reader, a writer or
// PostgreSQL's absence is in the way.
func (w *world) mend(ctx context.Context, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return rig.Poll(ctx, func(ctx context.Context) (bool, error) {
		err := pgx.BeginFunc(ctx, w.db.Pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '2s'; `+sql)
			return err
		})
		return err == nil, err
	})
}

// harms are what an owner does to a captured table.
func (w *world) harms() []harm {
	return []harm{
		{"table created without capture", 3, func(ctx context.Context, _ *rand.Rand) error { return w.forget(ctx) }},
		{"table without capture looked for", 6, func(ctx context.Context, _ *rand.Rand) error { return w.remember(ctx) }},
		{"table dropped and created", 3, func(ctx context.Context, _ *rand.Rand) error {
			return w.whenRead(ctx, `SELECT pgtrickle.disable_outbox('public.events'); DROP TABLE events; `+createEvents)
		}},
		{"table renamed", 2, func(ctx context.Context, rng *rand.Rand) error {
			err := w.alter(ctx, `ALTER TABLE IF EXISTS events RENAME TO events_away`)
			pause(ctx, time.Duration(rng.IntN(2000))*time.Millisecond)
			return errors.Join(err, w.alter(ctx, `ALTER TABLE IF EXISTS events_away RENAME TO events`))
		}},
		{"partition attached and detached", 3, func(ctx context.Context, rng *rand.Rand) error {
			w.partitions++
			name := fmt.Sprint("events_p", w.partitions)
			err := w.alter(ctx, fmt.Sprintf(`LOCK TABLE events; DROP TABLE IF EXISTS %[1]s; CREATE TABLE %[1]s (LIKE events INCLUDING ALL);
				DO $$ DECLARE next bigint := (SELECT coalesce(max(id), 0) + 1 FROM written); BEGIN
				EXECUTE format('ALTER TABLE events ATTACH PARTITION %[1]s FOR VALUES FROM (%%s) TO (%%s)', next, next + 200);
				END $$`, name))
			pause(ctx, time.Duration(500+rng.IntN(2000))*time.Millisecond)
			return errors.Join(err, w.alter(ctx, fmt.Sprintf(`DO $$ BEGIN
				IF to_regclass('%[1]s') IS NOT NULL THEN ALTER TABLE events DETACH PARTITION %[1]s; DROP TABLE %[1]s; END IF; END $$`, name)))
		}},
		{"outbox dropped and created", 3, func(ctx context.Context, _ *rand.Rand) error {
			return w.whenRead(ctx, `SELECT pgtrickle.disable_outbox('public.events'); SELECT pgtrickle.enable_outbox('public.events')`)
		}},
	}
}

// whenRead holds the writers off until everything has arrived, and executes sql, which
// begins an outbox whose ids begin again. It gives up where that takes too long.
func (w *world) whenRead(ctx context.Context, sql string) error {
	if w.forgotten {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := pgx.BeginFunc(ctx, w.db.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '2s'; LOCK TABLE events IN SHARE MODE`); err != nil {
			return err
		}
		if err := rig.Poll(ctx, func(ctx context.Context) (bool, error) {
			lost, _, err := w.c.account(ctx, w)
			pause(ctx, time.Second)
			return lost == 0, err
		}); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sql)
		return err
	}); err == nil { // else the old outbox goes on
		w.replaced++
	}
	return nil
}

// remake deletes and creates the far end while the relays are frozen, so that what it
// had can be read before. Half of the times they are killed, too.
func (c *worldsCase) remake(ctx context.Context, rng *rand.Rand, h ends.Harm) error {
	kill := rng.IntN(2) == 0
	for _, w := range c.worlds {
		_ = w.crew.relays[0].Signal(syscall.SIGSTOP) // one that ended is dead for good
	}
	pause(ctx, 300*time.Millisecond) // for what is on its way
	had, err := c.end.Arrived(ctx)
	if err == nil {
		err = h.Do(ctx)
	}
	if err == nil {
		c.lives = append(c.lives, had)
	}
	for _, w := range c.worlds {
		if kill {
			w.crew.relays[0].Kill()
			w.crew.start(0)
		} else {
			_ = w.crew.relays[0].Signal(syscall.SIGCONT)
		}
	}
	return err
}

// account holds what was written in w against what arrived in all lives of the far end.
func (c *worldsCase) account(ctx context.Context, w *world) (lost int, l rig.Ledger, err error) {
	rows, _ := w.db.Pool.Query(ctx, `SELECT id, k, seq, note FROM written WHERE id NOT IN (SELECT id FROM missed)`)
	written, err := pgx.CollectRows(rows, pgx.RowToStructByPos[rig.Event])
	if err != nil {
		return 0, l, err
	}
	now, err := c.end.Arrived(ctx)
	if err != nil {
		return 0, l, err
	}
	copies := len(pipelines)
	if c.kind.Name == "pg-inbox" {
		copies = 1 // it goes by the event
	}
	l.Written = len(written)
	total, once := make(map[rig.Event]int), make(map[rig.Event]int)
	for _, life := range append(c.lives[:len(c.lives):len(c.lives)], now) {
		times := make(map[rig.Event]int)
		for _, r := range life {
			e, err := rig.Decode(r.Body)
			if err != nil {
				return 0, l, err
			}
			times[e]++
		}
		for e, n := range times {
			total[e] += n
			once[e] = max(once[e], n)
		}
	}
	for _, e := range written {
		l.Lost += max(0, copies-total[e])
		l.Duplicated += max(0, once[e]-copies)
		if l.Example == "" && (total[e] < copies || once[e] > copies) {
			l.Example = fmt.Sprintf("row %d of %s arrived %d times, %d times in one life", e.ID, e.Note, total[e], once[e])
		}
	}
	return l.Lost, l, nil
}

func (c *worldsCase) judge(t *testing.T, shaken string) {
	for _, w := range c.worlds {
		if err := w.db.Await(t.Context(), func(ctx context.Context) (bool, error) { // a relay looks once a minute
			return !w.forgotten, w.remember(ctx)
		}); err != nil {
			t.Errorf("%s: no relay names the table whose changes are not recorded: %v", w.db.Name, err)
		}
		var l rig.Ledger
		_ = w.db.Await(t.Context(), func(ctx context.Context) (bool, error) { // the ledger has the rest
			lost, now, err := c.account(ctx, w)
			l = now
			return lost == 0 && err == nil && now.Written > 0, err
		})
		err := l.Err(c.kind.Exact)
		if l.Written == 0 {
			err = errors.New("nothing was written")
		}
		if err != nil {
			t.Errorf("%s: %v", w.db.Name, err)
		}
		table.add(line{"worlds", w.db.Name, "forward", l, fmt.Sprintf("%d lives of the far end, %d of the outbox, %d tables without capture, each named; %s, %s",
			len(c.lives)+1, w.replaced+1, w.named, c.harm, shaken), err == nil})
	}
}
