package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/pace"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/progress"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// maxSpare bounds the slices that are kept to be filled again: as many as are in use
// between two reads of a busy outbox.
const maxSpare = 4

// crowds are the readers that follow rows. A row wakes all readers of its outbox at once;
// those of another outbox have rows of their own.
var crowds pace.Crowds

// Source reads one outbox table.
//
// Three goroutines call it: one calls Receive, one calls Committed, and others ask for
// the lag and the like. The reader and the pace belong to the first, the consumer to
// the second; shared and the tracker serve all.
type Source struct {
	pool  *pgxpool.Pool
	cfg   Config
	moved progress.Notifier
	spare chan []relay.Message

	reader   *reader // of the present opening
	pace     *pace.Pace
	reused   bool
	consumer consumer
	shared   shared
}

// Open finds the outbox, checks that it can be read without losing a row, and returns a
// source that continues after cfg.Checkpoint.
func Open(ctx context.Context, pool *pgxpool.Pool, cfg Config) (*Source, error) {
	cfg.defaults()
	s := &Source{
		pool: pool, cfg: cfg, moved: progress.NewNotifier(), spare: make(chan []relay.Message, maxSpare),
		pace: pace.New(crowds.For(cfg.Outbox)),
	}
	o, err := open(ctx, pool, &s.cfg, cfg.Checkpoint, table.Beginning)
	if err != nil {
		return nil, fmt.Errorf("open outbox %q: %w", cfg.Outbox, err)
	}
	s.use(o)
	return s, nil
}

// Table returns the outbox table's qualified name.
func (s *Source) Table() string { return s.shared.view().table.String() }

// Unlogged reports whether a crash of the server empties the outbox.
func (s *Source) Unlogged() bool { return s.shared.view().table.Unlogged }

// Strategy returns "window" or "fence".
func (s *Source) Strategy() string { return s.shared.view().tracker.Strategy().Name() }

// Follows reports whether the source must poll every [FollowEvery] to notice that its
// stream table has another outbox.
func (s *Source) Follows() bool { return s.shared.view().table.Registered() }

// KeyColumns returns the primary key of the stream table, nil if it is unknown.
func (s *Source) KeyColumns() []string { return slices.Clone(s.shared.view().table.Keys) }

// LookUpKey returns the primary key of the stream table as it is now, nil if it is
// unknown.
func (s *Source) LookUpKey(ctx context.Context) ([]string, error) {
	keys, err := table.PrimaryKey(ctx, s.pool, s.cfg.Outbox)
	if relay.IsFatal(err) { // the table has another name now
		return nil, nil
	}
	return keys, err
}

// Reused reports whether ids after the checkpoint may have belonged to other rows: the
// table's ids have restarted, or the database was restored or promoted. Then a message
// id that the far end has need not be of the row that has it now. It must be called
// before the first Receive.
func (s *Source) Reused() bool { return s.reused }

// Receive implements [relay.Source].
func (s *Source) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	return s.receive(ctx, limit, true)
}

// Stream makes the source return rows of more than 8 MiB with a [relay.Stream] where that is
// possible. It must be called before the first Receive.
func (s *Source) Stream() { s.cfg.streams = true }

// Wants implements engine.Asker.
func (s *Source) Wants() int64 { return s.reader.wants }

// Look is Receive for callers that do not wait for new rows: it returns no messages if a
// read of the table finds none.
func (s *Source) Look(ctx context.Context, limit int) ([]relay.Message, error) {
	return s.receive(ctx, limit, false)
}

// receive reads, and opens the outbox again each time its reader asks for that. The
// reader has released its connection by then.
func (s *Source) receive(ctx context.Context, limit int, wait bool) ([]relay.Message, error) {
	s.pace.Enter()
	defer s.pace.Leave()
	for {
		batch, err := s.reader.receive(ctx, limit, wait)
		var why *reopenError
		if errors.As(err, &why) {
			err = s.reopen(ctx, why)
			if err == nil {
				continue
			}
		}
		if err != nil && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return batch, err
	}
}

// Unread returns the first row, of those up to the id to, behind everything that was
// read; nil if there is none. Such a row came just now, or is held back. The source must
// have started at an id, because a checkpoint may have gaps. Unread must not be called
// during a Receive.
func (s *Source) Unread(ctx context.Context, to int64) (first *int64, err error) {
	t := s.reader.table
	sql := `SELECT min(` + t.ID() + `)::bigint FROM ` + t.Qualified() + ` WHERE ` + t.ID() + ` > $1::bigint AND ` + t.ID() + ` <= $2::bigint`
	if err := s.pool.QueryRow(ctx, sql, s.reader.highest, to).Scan(&first); err != nil {
		return nil, s.reader.explain(err)
	}
	return first, nil
}

// Ack is not used: the engine calls Checkpoint.
func (s *Source) Ack(context.Context, []relay.Message) error {
	return relay.Fatal(errors.New("an outbox is acknowledged by its checkpoint"))
}

// Checkpoint implements [relay.Checkpointer]. The batch may be empty: rows without
// messages and windows without rows move the checkpoint, too.
func (s *Source) Checkpoint(batch []relay.Message) (relay.Checkpoint, error) {
	return s.shared.view().tracker.Settle(batch), nil
}

// Close implements [relay.Source]. The pool stays open.
func (s *Source) Close() error {
	s.consumer.close()
	return nil
}

// Recycle implements engine.Recycler.
func (s *Source) Recycle(batch []relay.Message) {
	clear(batch) // it must not keep the rows in memory
	select {
	case s.spare <- batch[:0]:
	default:
	}
}

// Moved implements engine.Mover.
func (s *Source) Moved() <-chan struct{} { return s.moved }

// Tune sets up a connection that serves nothing but outboxes; see [scan.Tune].
var Tune = scan.Tune

var (
	_ relay.Checkpointer = (*Source)(nil)
	_ relay.Lagger       = (*Source)(nil)
)
