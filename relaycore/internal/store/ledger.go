package store

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

var (
	//go:embed sql/load.sql
	loadSQL string
	//go:embed sql/commit.sql
	commitSQL string
	//go:embed sql/commit_dead_letters.sql
	commitDeadLettersSQL string
	//go:embed sql/newly_dead.sql
	newlyDeadSQL string
	//go:embed sql/current.sql
	currentSQL string
	//go:embed sql/set_status.sql
	setStatusSQL string
	//go:embed sql/keep_far_ends.sql
	keepFarEndsSQL string
)

// Ledger is the durable state of one pipeline, for one owner and one epoch. Its
// methods may be called from several goroutines.
type Ledger struct {
	store Store
	key   Key
	epoch int64
	owner string
	// timeline is that of the server that gave the state; "" if the role may not
	// read it. Then commits are checked by the epoch alone.
	timeline string
	source   func() string // the table that checkpoints belong to
	// conceal hides secrets in the texts of dead letters, and rendered names the headers
	// that dead letters leave out.
	conceal  func(text string) string
	rendered []string
	sql      *ledgerSQL
}

// ledgerSQL are the statements of all ledgers. They are made once: a thousand pipelines
// with statements of their own took 8 MB.
type ledgerSQL struct {
	load, keepFarEnds         string
	commit, commitDeadLetters string // a commit without and with dead letters
}

func newLedgerSQL(timeline string) *ledgerSQL {
	commit := func(deadLetters, newlyDead string) string {
		return strings.NewReplacer(":timeline", timeline, ":dead_letters", deadLetters, ":newly_dead", newlyDead).Replace(commitSQL)
	}
	return &ledgerSQL{
		load:        strings.ReplaceAll(loadSQL, ":timeline", timeline),
		keepFarEnds: strings.ReplaceAll(keepFarEndsSQL, ":timeline", timeline),
		commit:      commit("", "0"), commitDeadLetters: commit(commitDeadLettersSQL, newlyDeadSQL),
	}
}

var sqlWithTimeline, sqlWithoutTimeline = newLedgerSQL(timelineSQL), newLedgerSQL(`''`)

// Open loads the state of a pipeline whose cursor the lease has raised to epoch.
// owner is shown to operators. It returns [engine.ErrFenced] if the epoch is not
// current.
func (s Store) Open(ctx context.Context, key Key, epoch int64, owner string) (*Ledger, engine.State, error) {
	statements := sqlWithTimeline
	state, timeline, err := s.load(ctx, key, &epoch, statements)
	if pg.IsUnavailable(err) {
		statements = sqlWithoutTimeline
		state, timeline, err = s.load(ctx, key, &epoch, statements)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, engine.State{}, engine.ErrFenced
	}
	if err != nil {
		return nil, engine.State{}, fmt.Errorf("load cursor: %w", err)
	}

	return &Ledger{
		store: s, key: key, epoch: epoch, owner: owner, timeline: timeline,
		conceal: func(text string) string { return text }, sql: statements,
	}, state, nil
}

// Conceal makes dead letters of a forward pipeline leave out the headers called
// rendered, whose templates may hold secrets. They are rendered again at redrive, as
// the subject is. The subject and the error are stored as conceal returns them.
func (l *Ledger) Conceal(conceal func(text string) string, rendered []string) {
	l.conceal, l.rendered = conceal, rendered
}

// Load returns the state that the next owner of a pipeline would find. It is the
// zero state if the pipeline has never run.
func (s Store) Load(ctx context.Context, key Key) (engine.State, error) {
	state, _, err := s.load(ctx, key, nil, sqlWithoutTimeline)
	if errors.Is(err, pgx.ErrNoRows) {
		return engine.State{}, nil
	}
	if err != nil {
		return engine.State{}, fmt.Errorf("load cursor: %w", err)
	}
	return state, nil
}

// Current reports whether epoch is that of the pipeline's owner.
func (s Store) Current(ctx context.Context, key Key, epoch int64) (current bool, err error) {
	if err := s.db.QueryRow(ctx, currentSQL, s.args(key, pgx.StrictNamedArgs{"epoch": epoch})).Scan(&current); err != nil {
		return false, fmt.Errorf("read the epoch of pipeline %q: %w", key.Name, err)
	}
	return current, nil
}

// load reads a cursor, of any epoch if epoch is nil.
func (s Store) load(ctx context.Context, key Key, epoch *int64, sql *ledgerSQL) (state engine.State, timeline string, err error) {
	var checkpoint []byte
	var status string
	err = s.db.QueryRow(ctx, sql.load, s.args(key, pgx.StrictNamedArgs{"epoch": epoch})).
		Scan(&checkpoint, &state.Checkpoint.LastID, &state.Source, &state.Position, &state.FarEnds, &status, &state.Identity,
			&state.NoDeadLetters, &timeline)
	state.Checkpoint.State = json.RawMessage(checkpoint)
	state.Started, state.Clean = status != StatusNew, status == StatusStopped
	return state, timeline, err
}

// SetSource sets what names the outbox table that later checkpoints belong to.
func (l *Ledger) SetSource(table func() string) { l.source = table }

// Commit makes c durable, all of it or nothing.
func (l *Ledger) Commit(ctx context.Context, c engine.Commit) error {
	sql, args, what := l.sql.commit, l.progress(c), "commit checkpoint"
	if len(c.DeadLetters) > 0 || len(c.Redriven) > 0 {
		rows, err := l.deadLetters(c.DeadLetters)
		if err != nil {
			return err
		}
		sql, what = l.sql.commitDeadLetters, "store dead letters"
		maps.Copy(args, pgx.StrictNamedArgs{"dead_letters": rows, "redriven": c.Redriven})
	}
	var moved int
	if err := l.store.db.QueryRow(ctx, sql, args).Scan(&moved); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if moved == 0 {
		return engine.ErrFenced
	}
	return nil
}

// progress returns the arguments of commit.sql.
func (l *Ledger) progress(c engine.Commit) pgx.StrictNamedArgs {
	var state []byte
	var lastID int64
	source := ""
	if c.Checkpoint != nil {
		state, lastID = c.Checkpoint.State, c.Checkpoint.LastID
		if l.source != nil {
			source = l.source()
		}
	}
	return l.store.args(l.key, pgx.StrictNamedArgs{
		"epoch": l.epoch, "timeline": l.timeline, "owner": l.owner,
		"checkpoint": state, "last_id": lastID, "source": source, "position": c.Position,
		"delivered": c.Delivered, "skipped": c.Skipped, "unexpected": c.Unexpected, "filtered": c.Filtered,
	})
}

// SetStatus records what the pipeline is doing, and the reason if it fails.
func (l *Ledger) SetStatus(ctx context.Context, status, reason string) error {
	tag, err := l.store.db.Exec(ctx, setStatusSQL,
		l.store.args(l.key, pgx.StrictNamedArgs{"epoch": l.epoch, "status": status, "reason": text(reason)}))
	if err != nil {
		return fmt.Errorf("record status: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return engine.ErrFenced
	}
	return nil
}

// KeepFarEnds stores what the source knows of its far ends, as a JSON object.
func (l *Ledger) KeepFarEnds(ctx context.Context, state string) error {
	tag, err := l.store.db.Exec(ctx, l.sql.keepFarEnds,
		l.store.args(l.key, pgx.StrictNamedArgs{"epoch": l.epoch, "timeline": l.timeline, "far_ends": state}))
	if err != nil {
		return fmt.Errorf("store far ends: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return engine.ErrFenced
	}
	return nil
}
