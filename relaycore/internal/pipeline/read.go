package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/codec"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/identity"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Reader is an outbox that is read without a lease, for previews and replays.
type Reader struct {
	Source   *outbox.Source
	Settings catalog.Settings // of the pipeline
	encoder  *codec.Encoder
	ends     *ends // its sink opens when a replay needs it
}

// Read opens the pipeline's outbox where the next owner would continue, or at the
// row from if that is not 0.
func (r *Runner) Read(ctx context.Context, pl catalog.Pipeline, from int64, log *slog.Logger) (*Reader, error) {
	resolved, err := pl.Resolve()
	if err != nil {
		return nil, err
	}
	s := resolved.Settings
	state, err := r.store().Load(ctx, pl.Key)
	if err != nil {
		return nil, err
	}
	e := &ends{Runner: r, pipeline: pl, resolved: resolved, log: log, identity: state.Identity}
	config := e.outboxConfig()
	if from != 0 {
		config.Checkpoint.LastID, config.Settings.Startup = from-1, table.StartEarliest
	} else {
		config.Group, config.Pipeline, config.Checkpoint = r.Group, pl.Name, state.Checkpoint
	}
	src, err := outbox.Open(ctx, r.Pool, config)
	if err != nil {
		return nil, err
	}
	encoder, err := newEncoder(s, src, r.Version, log)
	if err != nil {
		_ = src.Close() // err matters more
		return nil, err
	}
	return &Reader{Source: src, Settings: s, encoder: encoder, ends: e}, nil
}

// Next returns at most limit encoded messages, none at the end of the outbox.
func (r *Reader) Next(ctx context.Context, limit int) ([]relay.Message, error) {
	batch, err := r.Source.Look(ctx, limit)
	if err != nil {
		return nil, err
	}
	r.encoder.Encode(batch, nil)
	return batch, nil
}

// Verify accounts for every row of a forward pipeline's outbox.
func (r *Runner) Verify(ctx context.Context, pl catalog.Pipeline) (outbox.Accounting, error) {
	resolved, err := pl.Resolve()
	if err != nil {
		return outbox.Accounting{}, err
	}
	s := resolved.Settings
	return outbox.Verify(ctx, r.Pool, outbox.Config{Outbox: s.StreamTable, Settings: s.Forward.Settings, Group: r.Group, Pipeline: pl.Name})
}

// Finish gives the outboxes of all forward pipelines their identities, and with them the
// boundary between the old form of ids and the new one. The first reader does the same
// when it opens an outbox; Finish does it for pipelines that do not run, too. It returns
// the outboxes, sorted, and an error for each pipeline whose outbox has no boundary.
func (r *Runner) Finish(ctx context.Context, pipelines catalog.Snapshot) (done []identity.Report, err error) {
	if err := r.store().RefuseOlder(ctx); err != nil {
		return nil, err
	}
	for _, pl := range pipelines {
		if pl.Direction != relay.Forward {
			continue
		}
		id, ierr := r.identify(ctx, pl)
		if ierr != nil {
			err = errors.Join(err, fmt.Errorf("pipeline %q: %w", pl.Name, ierr))
			continue
		}
		done = append(done, id)
	}
	slices.SortFunc(done, func(a, b identity.Report) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(done), err
}

func (r *Runner) identify(ctx context.Context, pl catalog.Pipeline) (identity.Report, error) {
	resolved, err := pl.Resolve()
	if err != nil {
		return identity.Report{}, err
	}
	s := resolved.Settings
	return identity.Settle(ctx, r.Pool, r.store(), s.StreamTable, s.Forward.Settings.WithDefaults())
}
