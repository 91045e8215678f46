package relaycmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pipeline"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

type replayOptions struct {
	from   int64
	to     int64
	newIDs bool
}

func (p *program) replayCommand() *ffcli.Command {
	var o replayOptions
	fs := p.flagSet()
	fs.Int64Var(&o.from, "from", 0, "first outbox `id`")
	fs.Int64Var(&o.to, "to", 0, "last outbox `id`")
	fs.BoolVar(&o.newIDs, "new-ids", false, "give the messages new ids, for receivers that drop known ids as duplicates")

	return p.withArgs(1, 1, &ffcli.Command{
		Name: "replay", ShortUsage: "replay NAME --from ID --to ID", FlagSet: fs,
		ShortHelp: "publish delivered outbox rows again, without moving the checkpoint",
	}, func(ctx context.Context, args []string) error {
		return p.replayRows(ctx, &o, args[0])
	})
}

type replayReport struct {
	Pipeline  string `json:"pipeline"`
	From      int64  `json:"from"`
	To        int64  `json:"to"`
	Published int64  `json:"published"`
	Refused   int64  `json:"refused"`
}

// replayRows publishes rows of the outbox again. It may run beside the pipeline:
// the two share only the outbox and the receiver.
func (p *program) replayRows(ctx context.Context, o *replayOptions, name string) error {
	if o.from < 1 || o.to < o.from {
		return errors.New("select the rows with --from ID --to ID, the first not greater than the last")
	}

	pool, snapshot, err := p.load(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	pl, err := forward(snapshot, name)
	if err != nil {
		return err
	}

	report, err := p.replay(ctx, pool, pl, o)
	switch {
	case err != nil:
		return err
	case p.json():
		return p.printJSON(report)
	}
	fmt.Fprintf(p.stdout, "replayed rows %d to %d of %s: %d messages published, %d refused\n",
		report.From, report.To, pl.Name, report.Published, report.Refused)
	return nil
}

func (p *program) replay(ctx context.Context, pool *pgxpool.Pool, pl catalog.Pipeline, o *replayOptions) (replayReport, error) {
	log := p.logger()
	b := p.runner(pool)
	reader, err := b.Read(ctx, pl, o.from, log)
	if err != nil {
		return replayReport{}, err
	}
	defer reader.Source.Close() //nolint:errcheck // it was only read

	sink, err := b.Sink(ctx, pl, log)
	if err != nil {
		return replayReport{}, err
	}
	defer sink.Close() //nolint:errcheck // everything is confirmed by then

	r := &replayer{
		reader: reader, sink: sink, batchSize: reader.Settings.BatchSize, newIDs: o.newIDs, log: log,
		header: relay.Header{Name: relay.HeaderReplay, Value: time.Now().UTC().Format(time.RFC3339)},
		report: replayReport{Pipeline: pl.Name, From: o.from, To: o.to},
	}
	if l, ok := sink.(relay.Limiter); ok {
		if n, _ := l.Limits(); n > 0 {
			r.batchSize = min(r.batchSize, n)
		}
	}
	if err := r.run(ctx); err != nil {
		return r.report, fmt.Errorf("replay %q, after %d messages: %w", pl.Name, r.report.Published, err)
	}
	return r.report, nil
}

// replayer copies a range of outbox rows to a sink.
type replayer struct {
	reader    *pipeline.Reader
	sink      relay.Sink
	batchSize int
	newIDs    bool
	header    relay.Header // marks each message as replayed
	log       *slog.Logger

	report    replayReport
	heldSince time.Time // zero unless the outbox holds rows back
}

func (r *replayer) run(ctx context.Context) error {
	for {
		batch, err := r.reader.Next(ctx, r.batchSize)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			ended, err := r.atEnd(ctx)
			if ended || err != nil {
				return err
			}
			continue
		}
		r.heldSince = time.Time{}

		selected, beyond := r.selectFrom(batch)
		if err := r.publish(ctx, selected); err != nil {
			return err
		}
		if _, err := r.reader.Source.Checkpoint(batch); err != nil { // lets the source forget the batch
			return err
		}
		if beyond == len(batch) {
			return nil
		}
	}
}

// maxHeld bounds how long a replay waits for rows that the outbox holds back. The
// outbox releases most of them within one or two reads.
const maxHeld = 5 * time.Second

// atEnd reports whether a read that found nothing was the last one: every row of
// the range was read.
func (r *replayer) atEnd(ctx context.Context) (bool, error) {
	first, err := r.reader.Source.Unread(ctx, r.report.To)
	if err != nil || first == nil {
		return err == nil, err
	}

	if r.heldSince.IsZero() {
		r.heldSince = time.Now()
	}
	if time.Since(r.heldSince) < maxHeld {
		return false, nil
	}
	return false, fmt.Errorf("the rows from %d on are held back, because open transactions may still fill gaps between the ids before them: "+
		"look for old ones in pg_stat_activity, end them, and replay --from %d --to %d", *first, *first, r.report.To)
}

// selectFrom returns the messages of the batch to publish, and how many messages
// lie beyond the range.
func (r *replayer) selectFrom(batch []relay.Message) (selected []relay.Message, beyond int) {
	selected = make([]relay.Message, 0, len(batch))

	for i := range batch {
		m := &batch[i]
		switch {
		case m.OutboxID > r.report.To:
			beyond++
		case m.OutboxID < r.report.From: // a late row of an open window
		case m.Err != nil:
			r.report.Refused++
			r.log.Warn("message cannot be replayed", "id", m.ID, "err", m.Err)
		default:
			m.Headers = append(m.Headers[:len(m.Headers):len(m.Headers)], r.header)
			if r.newIDs {
				m.ID += ":replay:" + r.header.Value
			}
			selected = append(selected, *m)
		}
	}
	return selected, beyond
}

// publish retries a few times only, because the operator sees the error.
func (r *replayer) publish(ctx context.Context, batch []relay.Message) error {
	const maxTries = 8

	for try := 1; len(batch) > 0; try++ {
		err := r.sink.Publish(ctx, batch)
		if err == nil {
			r.report.Published += int64(len(batch))
			return nil
		}

		if partial, ok := errors.AsType[*relay.BatchError](err); ok {
			batch = r.unpublished(batch, partial)
		}
		if relay.IsFatal(err) || try == maxTries {
			return err
		}

		if err := backoff.Sleep(ctx, time.Duration(try)*250*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// unpublished counts the messages that were published or refused, and returns the others.
func (r *replayer) unpublished(batch []relay.Message, partial *relay.BatchError) (rest []relay.Message) {
	for i := range batch {
		switch err := partial.Failed[i]; {
		case err == nil:
			r.report.Published++
		case relay.IsPermanent(err):
			r.report.Refused++
			r.log.Warn("message refused", "id", batch[i].ID, "err", err)
		default:
			rest = append(rest, batch[i])
		}
	}
	return rest
}
