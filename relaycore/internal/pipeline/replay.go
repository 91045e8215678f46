package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// ReplayOptions select what Replay publishes.
type ReplayOptions struct {
	From, To int64 // outbox ids, both included
	NewIDs   bool  // give the messages new ids
}

// ReplayReport is what Replay has done.
type ReplayReport struct {
	Pipeline  string `json:"pipeline"`
	From      int64  `json:"from"`
	To        int64  `json:"to"`
	Published int64  `json:"published"`
	Refused   int64  `json:"refused"`
	Filtered  int64  `json:"filtered"`
}

// Replay publishes rows of a forward pipeline's outbox again. It may run beside the
// pipeline: the two share only the outbox and the receiver. The report is valid
// even if Replay returns an error.
func (r *Runner) Replay(ctx context.Context, pl catalog.Pipeline, o ReplayOptions, log *slog.Logger) (ReplayReport, error) {
	report := ReplayReport{Pipeline: pl.Name, From: o.From, To: o.To}
	conceal := pl.Concealer()
	log = conceal.Logger(log)
	reader, err := r.Read(ctx, pl, o.From, log)
	if err != nil {
		return report, err
	}
	defer reader.Source.Close() //nolint:errcheck // it was only read

	if err := reader.ends.openSink(ctx); err != nil {
		return report, conceal.Error(pl.Explain(err))
	}
	sink := reader.ends.sink
	defer sink.Close() //nolint:errcheck // everything is confirmed by then

	rp := &replayer{
		reader: reader, sink: sink, batchSize: reader.Settings.BatchSize, newIDs: o.NewIDs, log: log, report: report,
		header: relay.Header{Name: relay.HeaderReplay, Value: time.Now().UTC().Format(time.RFC3339)},
	}
	if l, ok := sink.(relay.Limiter); ok {
		if n, _ := l.Limits(); n > 0 {
			rp.batchSize = min(rp.batchSize, n)
		}
	}
	err = rp.run(ctx)
	return rp.report, conceal.Error(err)
}

// replayer copies a range of outbox rows to a sink.
type replayer struct {
	reader    *Reader
	sink      relay.Sink
	batchSize int
	newIDs    bool
	header    relay.Header // marks each message as replayed
	log       *slog.Logger

	report    ReplayReport
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

// MaxHeld bounds how long Replay waits for rows that the outbox holds back. The
// outbox releases most of them within one or two reads.
const MaxHeld = 5 * time.Second

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
	if time.Since(r.heldSince) < MaxHeld {
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
		case errors.Is(m.Err, relay.ErrFiltered):
			r.report.Filtered++
		case m.Err != nil:
			r.report.Refused++
			r.log.Warn("message cannot be replayed", "id", m.ID, "err", m.Err)
		default:
			m.Headers = append(m.Headers[:len(m.Headers):len(m.Headers)], r.header)
			if r.newIDs {
				m.ID += ":replay:" + r.header.Value
				m.DeliveryID = relay.DeliveryID(r.reader.ends.identity, m.ID)
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
