package relaycmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/supervisor"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// preview is a message as it would be sent.
type preview struct {
	ID          string            `json:"id"`
	OutboxID    int64             `json:"outbox_id"`
	Op          string            `json:"op"`
	Subject     string            `json:"subject"`
	Key         string            `json:"key"`
	Headers     map[string]string `json:"headers"`
	ContentType string            `json:"content_type"`
	Body        json.RawMessage   `json:"body"`
	Error       string            `json:"error,omitempty"` // why it would become a dead letter
}

// heldFor is how long a replay waits for rows that the outbox holds back. Those that
// nobody has to decide on are free by the next look or two.
const heldFor = 5 * time.Second

func runPreview(ctx context.Context, p *program, args []string) error {
	if p.opts.count < 1 {
		return fmt.Errorf("-n is %d; must be at least 1", p.opts.count)
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	pool, snapshot, err := p.load(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	pl, err := p.forward(snapshot, args[0])
	if err != nil {
		return err
	}
	messages, err := p.previews(ctx, pool, pl)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("preview %q: the outbox was not read within %s, it is locked or slow: %w", pl.Name, commandTimeout, err)
	case err != nil:
		return fmt.Errorf("preview %q: %w", pl.Name, err)
	case p.opts.json():
		return p.printJSON(messages)
	}
	p.printPreviews(messages)
	return nil
}

// previews reads as many messages as were asked for, fewer where the outbox ends.
func (p *program) previews(ctx context.Context, pool *pgxpool.Pool, pl catalog.Pipeline) ([]preview, error) {
	r, _, err := p.builder(pool).Read(ctx, pl, p.opts.from, p.opts.logger(p.stderr))
	if err != nil {
		return nil, err
	}
	defer r.Source.Close() //nolint:errcheck // it was only read
	messages := []preview{}
	for len(messages) < p.opts.count {
		batch, err := r.Next(ctx, p.opts.count-len(messages))
		if err != nil || len(batch) == 0 {
			return messages, err
		}
		for i := range batch {
			messages = append(messages, newPreview(&batch[i]))
		}
	}
	return messages, nil
}

func newPreview(m *relay.Message) preview {
	v := preview{ID: m.ID, OutboxID: m.OutboxID, Op: m.Op, Subject: m.Subject, Key: m.Key, ContentType: m.ContentType, Headers: make(map[string]string)}
	for _, h := range m.WireHeaders(nil) {
		v.Headers[h.Name] = h.Value
	}
	if v.Body = append(json.RawMessage(nil), m.Body...); !json.Valid(v.Body) {
		v.Body, _ = json.Marshal(string(m.Body))
	}
	if m.Err != nil {
		v.Error = m.Err.Error()
	}
	return v
}

func (p *program) printPreviews(messages []preview) {
	if len(messages) == 0 {
		fmt.Fprintln(p.stdout, "nothing to deliver; --from ID shows rows that are delivered already")
	}
	for _, m := range messages {
		fmt.Fprintf(p.stdout, "%s\n  subject  %s\n  key      %s\n", m.ID, m.Subject, orDash(m.Key))
		for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
			fmt.Fprintf(p.stdout, "  header   %s: %s\n", name, m.Headers[name])
		}
		if m.Error != "" {
			fmt.Fprintf(p.stdout, "  ERROR    %s\n", m.Error)
		}
		fmt.Fprintf(p.stdout, "  body     %s\n", m.Body)
	}
}

type replayReport struct {
	Pipeline  string `json:"pipeline"`
	From      int64  `json:"from"`
	To        int64  `json:"to"`
	Published int64  `json:"published"`
	Refused   int64  `json:"refused"`
}

// runReplay publishes rows of the outbox again. It shares nothing with the
// pipeline that may run meanwhile but the outbox and the far end.
func runReplay(ctx context.Context, p *program, args []string) error {
	if p.opts.from < 1 || p.opts.to < p.opts.from {
		return errors.New("say which rows: --from ID --to ID, the first not greater than the last")
	}
	pool, snapshot, err := p.load(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	pl, err := p.forward(snapshot, args[0])
	if err != nil {
		return err
	}
	log := p.opts.logger(p.stderr)
	b := p.builder(pool)
	r, resolved, err := b.Read(ctx, pl, p.opts.from, log)
	if err != nil {
		return err
	}
	defer r.Source.Close() //nolint:errcheck // it was only read
	sink, err := b.Sink(ctx, pl, resolved, log)
	if err != nil {
		return err
	}
	defer sink.Close() //nolint:errcheck // all is confirmed by then
	report := replayReport{Pipeline: pl.Name, From: p.opts.from, To: p.opts.to}
	mark := relay.Header{Name: relay.HeaderReplay, Value: time.Now().UTC().Format(time.RFC3339)}
	limit := resolved.Settings.BatchSize
	if l, ok := sink.(relay.Limiter); ok {
		if n, _ := l.Limits(); n > 0 {
			limit = min(limit, n)
		}
	}
	if err := p.replay(ctx, r, sink, &report, mark, limit, log); err != nil {
		return fmt.Errorf("replay %q, after %d messages: %w", pl.Name, report.Published, err)
	}
	if p.opts.json() {
		return p.printJSON(report)
	}
	fmt.Fprintf(p.stdout, "replayed rows %d to %d of %s: %d messages published, %d refused\n", report.From, report.To, pl.Name, report.Published, report.Refused)
	return nil
}

func (p *program) replay(ctx context.Context, r *supervisor.Reader, sink relay.Sink, report *replayReport, mark relay.Header, limit int, log *slog.Logger) error {
	var heldSince time.Time
	for {
		batch, err := r.Next(ctx, limit)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			ended, err := atEnd(ctx, r, report, &heldSince)
			if ended || err != nil {
				return err
			}
			continue
		}
		heldSince = time.Time{}
		todo := make([]relay.Message, 0, len(batch))
		beyond := 0
		for i := range batch {
			m := &batch[i]
			switch {
			case m.OutboxID > report.To:
				beyond++
			case m.OutboxID < report.From: // a late row of an open window
			case m.Err != nil:
				report.Refused++
				log.Warn("message cannot be replayed", "id", m.ID, "err", m.Err)
			default:
				m.Headers = append(m.Headers[:len(m.Headers):len(m.Headers)], mark)
				if p.opts.freshIDs {
					m.ID += ":replay:" + mark.Value
				}
				todo = append(todo, *m)
			}
		}
		if err := p.publishAgain(ctx, sink, todo, report, log); err != nil {
			return err
		}
		if _, err := r.Source.Checkpoint(batch); err != nil { // lets the source forget them
			return err
		}
		if beyond == len(batch) {
			return nil
		}
	}
}

// atEnd reports whether a look that found nothing was the last one: no row of the
// range lies behind what was read.
func atEnd(ctx context.Context, r *supervisor.Reader, report *replayReport, heldSince *time.Time) (bool, error) {
	first, err := r.Source.Unread(ctx, report.To)
	if err != nil || first == nil {
		return err == nil, err
	}
	if heldSince.IsZero() {
		*heldSince = time.Now()
	}
	if time.Since(*heldSince) < heldFor {
		return false, nil
	}
	return false, fmt.Errorf("the rows from %d on are held back, because open transactions may still fill too many gaps between the ids before them: "+
		"look for old ones in pg_stat_activity, end them, and replay --from %d --to %d", *first, *first, report.To)
}

// publishAgain tries a few times; whoever replays is there to see it fail.
func (p *program) publishAgain(ctx context.Context, sink relay.Sink, todo []relay.Message, report *replayReport, log *slog.Logger) error {
	const tries = 8
	for try := 1; len(todo) > 0; try++ {
		err := sink.Publish(ctx, todo)
		if err == nil {
			report.Published += int64(len(todo))
			return nil
		}
		var partial *relay.BatchError
		if errors.As(err, &partial) {
			var again []relay.Message
			for i := range todo {
				switch failure := partial.Failed[i]; {
				case failure == nil:
					report.Published++
				case relay.IsPermanent(failure):
					report.Refused++
					log.Warn("message refused", "id", todo[i].ID, "err", failure)
				default:
					again = append(again, todo[i])
				}
			}
			todo = again
		}
		if relay.IsFatal(err) || try == tries {
			return err
		}
		timer := time.NewTimer(time.Duration(try) * 250 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
	return nil
}

func runVerify(ctx context.Context, p *program, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	pool, snapshot, err := p.load(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	pl, err := p.forward(snapshot, args[0])
	if err != nil {
		return err
	}
	acc, err := p.builder(pool).Verify(ctx, pl)
	if err != nil {
		return err
	}
	if p.opts.json() {
		err = p.printJSON(acc)
	} else {
		fmt.Fprintf(p.stdout, "%s, read by %s, all settled up to id %d\n", acc.Table, orDash(acc.Strategy), acc.LastID)
		for _, line := range []struct {
			what string
			n    int64
		}{
			{"committed", acc.Committed},
			{"delivered", acc.Delivered},
			{"dead", acc.Dead},
			{"parked", acc.Parked},
			{"pending", acc.Pending},
			{"unaccounted", acc.Unaccounted},
			{"overtaken by retention", acc.Overtaken},
		} {
			fmt.Fprintf(p.stdout, "  %-23s %d\n", line.what, line.n)
		}
	}
	if err == nil && acc.Unaccounted != 0 {
		err = fmt.Errorf("%d rows of %s are neither delivered, dead, parked nor pending", acc.Unaccounted, acc.Table)
	}
	return err
}
