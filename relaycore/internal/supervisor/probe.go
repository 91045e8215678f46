package supervisor

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/codec"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Probe opens a pipeline's ends as a run would, asks whether they answer, and
// closes them. It takes no lease and moves nothing. busy says that some process
// runs the pipeline: then the source of a reverse pipeline is left alone, because
// a second consumer would take messages from the first.
func (b *Builder) Probe(ctx context.Context, pl catalog.Pipeline, busy bool, log *slog.Logger) (g relay.Guarantee, notes []string, err error) {
	resolved, err := pl.Resolve()
	if err != nil {
		return g, nil, err
	}
	g = resolved.Backend.SinkGuarantee
	if pl.Direction == relay.Reverse {
		g = resolved.Backend.SourceGuarantee
	}
	p := &pipeline{Builder: b, job: &Job{Pipeline: pl, Logger: log}, resolved: resolved}
	defer p.close()
	if pl.Direction == relay.Reverse && busy {
		err := p.openInbox(ctx)
		return g, []string{"runs now, so its source was not opened a second time"}, pl.Explain(err)
	}
	state, err := b.store().Load(ctx, pl.Key)
	if err != nil {
		return g, nil, err
	}
	if err := p.open(ctx, new(store.Ledger), state); err != nil {
		return g, nil, pl.Explain(err)
	}
	for _, end := range []any{p.source, p.sink} {
		if pinger, ok := end.(relay.Pinger); ok {
			if err := pinger.Ping(ctx); err != nil {
				return g, nil, fmt.Errorf("ping: %w", err)
			}
		}
	}
	var end any = p.sink
	if pl.Direction == relay.Reverse {
		end = p.source
	}
	if found, ok := end.(relay.Guarantor); ok {
		g = found.Guarantee()
	}
	return g, p.notes(), nil
}

// notes says what was found about the outbox.
func (p *pipeline) notes() []string {
	src, ok := p.source.(*outbox.Source)
	if !ok {
		return nil
	}
	s := p.resolved.Settings
	notes := []string{fmt.Sprintf("reads %s by %s", src.Table(), map[string]string{"window": "snapshot windows", "fence": "the gap fence"}[src.Strategy()])}
	switch {
	case !s.KeyTemplate.IsZero():
		return append(notes, "orders by key_template "+s.KeyTemplate.String())
	case s.KeyField != "":
		return append(notes, "orders by field "+s.KeyField)
	case len(src.KeyColumns()) > 0:
		return append(notes, fmt.Sprintf("orders by the primary key %v", src.KeyColumns()))
	case s.KeyColumn != "":
		return append(notes, "orders by column "+s.KeyColumn)
	}
	return append(notes, "has no key: order is kept within the pipeline only, and a dead letter holds nothing back; set key_field or key_template")
}

// Reader is an outbox that is read without a lease, for previews and replays.
type Reader struct {
	Source *outbox.Source
	codec  *codec.Encoder
}

// Read opens the pipeline's outbox where the next owner would go on, or at the
// row from, when that is not 0.
func (b *Builder) Read(ctx context.Context, pl catalog.Pipeline, from int64, log *slog.Logger) (*Reader, catalog.Resolved, error) {
	resolved, err := pl.Resolve()
	if err != nil {
		return nil, resolved, err
	}
	s := resolved.Settings
	config := outbox.Config{Outbox: s.StreamTable, Settings: s.Forward.Settings, PollInterval: s.PollInterval.D(), Logger: log}
	if from != 0 {
		config.Checkpoint.LastID = from - 1
	} else {
		state, err := b.store().Load(ctx, pl.Key)
		if err != nil {
			return nil, resolved, err
		}
		config.Group, config.Pipeline, config.Checkpoint = b.Group, pl.Name, state.Checkpoint
	}
	src, err := outbox.Open(ctx, b.Pool, config)
	if err != nil {
		return nil, resolved, err
	}
	enc, err := NewEncoder(s, src.KeyColumns(), b.Version)
	if err != nil {
		return nil, resolved, err
	}
	return &Reader{Source: src, codec: enc}, resolved, nil
}

// Next returns at most limit encoded messages, none when the outbox is at its end.
func (r *Reader) Next(ctx context.Context, limit int) ([]relay.Message, error) {
	batch, err := r.Source.Look(ctx, limit)
	if err != nil {
		return nil, err
	}
	r.codec.Encode(batch, nil)
	return batch, nil
}

// Verify accounts for every row of a forward pipeline's outbox.
func (b *Builder) Verify(ctx context.Context, pl catalog.Pipeline) (outbox.Accounting, error) {
	resolved, err := pl.Resolve()
	if err != nil {
		return outbox.Accounting{}, err
	}
	s := resolved.Settings
	return outbox.Verify(ctx, b.Pool, outbox.Config{Outbox: s.StreamTable, Settings: s.Forward.Settings, Group: b.Group, Pipeline: pl.Name})
}

// Sink opens the pipeline's sink.
func (b *Builder) Sink(ctx context.Context, pl catalog.Pipeline, resolved catalog.Resolved, log *slog.Logger) (relay.Sink, error) {
	p := &pipeline{Builder: b, job: &Job{Pipeline: pl, Logger: log}, resolved: resolved}
	sink, err := resolved.Backend.NewSink(ctx, p.env(), resolved.Config)
	if err != nil {
		return nil, pl.Explain(fmt.Errorf("open %s sink: %w", resolved.Backend.Name, err))
	}
	return sink, nil
}
