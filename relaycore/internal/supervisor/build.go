package supervisor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/inbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/codec"
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Builder makes pipelines out of their configuration and runs them.
type Builder struct {
	Pool    *pgxpool.Pool
	Readers *pgxpool.Pool // for outboxes; see [outbox.Tune]
	Group   string
	Owner   string // the instance, as operators see it
	Version string
	// Budget bounds the bytes in flight of all pipelines together.
	Budget *engine.Budget
}

// openTimeout bounds the opening of both ends.
const openTimeout = 30 * time.Second

// Run builds the job's pipeline and runs it until it is to stop or fails.
func (b *Builder) Run(ctx context.Context, job *Job) (err error) {
	resolved, err := job.Pipeline.Resolve()
	if err != nil {
		return relay.Fatal(err)
	}
	opening, opened := openContext(ctx, job.Stop)
	defer opened()
	led, state, err := b.store().Open(opening, job.Pipeline.Key, job.Lease.Epoch, b.Owner)
	if err != nil {
		return err
	}
	status := newRecorder(ctx, led, job)
	defer func() { status.end(ctx, err) }()

	p := &pipeline{Builder: b, job: job, resolved: resolved}
	defer p.close()
	if err := p.open(opening, led, state); err != nil {
		return job.Pipeline.Explain(err)
	}
	opened()
	if p.reused {
		state.Position = "" // a row is repeated rather than taken for another of its id
	}

	s := resolved.Settings
	eng := engine.New(engine.Config{
		Pipeline: job.Pipeline.Name, Source: p.source, Sink: p.sink, Transform: p.transform, Ledger: led, State: state,
		Batch: s.BatchSize, InFlightBytes: int64(s.MaxInFlightBytes), Budget: b.Budget,
		OnError: s.OnError, RateMessages: float64(s.RateLimitMessages), RateBytes: float64(s.RateLimitBytes),
		Trusted: job.Lease.Valid, Meter: job.Meter, Logger: job.Logger, Changed: status.changed,
	})
	lag, _ := p.source.(relay.Lagger)
	job.PollEvery(s.PollInterval.D())
	job.Running(p.outbox, eng.Redrive, lag, p.guarantee())
	status.changed(nil)
	job.Logger.Info("pipeline runs", "backend", resolved.Backend.Name, "epoch", job.Lease.Epoch)
	return eng.Run(ctx, job.Stop)
}

// openContext ends when ctx does, when the pipeline is to stop, or in time.
func openContext(ctx, stop context.Context) (context.Context, func()) {
	opening, cancel := context.WithTimeout(ctx, openTimeout)
	detach := context.AfterFunc(stop, cancel)
	return opening, func() {
		detach()
		cancel()
	}
}

// pipeline is the two ends of one run.
type pipeline struct {
	*Builder
	job       *Job
	resolved  catalog.Resolved
	source    relay.Source
	sink      relay.Sink
	transform func(batch []relay.Message, buf []byte) []byte
	outbox    string
	reused    bool // see outbox.Source.Reused
}

func (p *pipeline) open(ctx context.Context, led *store.Ledger, state engine.State) error {
	if p.job.Pipeline.Direction == relay.Forward {
		return p.openForward(ctx, led, state)
	}
	return p.openReverse(ctx, state)
}

func (p *pipeline) env() relay.Env {
	return relay.Env{Pipeline: p.job.Pipeline.Name, Group: p.Group, Logger: p.job.Logger, Subject: p.resolved.Settings.SubjectTemplate}
}

func (p *pipeline) openForward(ctx context.Context, led *store.Ledger, state engine.State) error {
	s := p.resolved.Settings
	src, err := outbox.Open(ctx, p.Readers, outbox.Config{
		Outbox: s.StreamTable, Settings: s.Forward.Settings, Group: p.Group, Pipeline: p.job.Pipeline.Name,
		Checkpoint: state.Checkpoint, PollInterval: s.PollInterval.D(), Wake: p.job.Wake, Polled: p.job.Meter.Polled, Logger: p.job.Logger,
	})
	if err != nil {
		return err
	}
	if _, _, watched := src.Numbering(); watched { // [Supervisor.pulse] wakes it
		src.SetPollInterval(max(quietPoll, s.PollInterval.D()))
	}
	p.source, p.outbox, p.reused = src, src.Table(), src.Reused()
	led.SetSource(src.Table())
	enc, err := NewEncoder(s, src.KeyColumns(), p.Version)
	if err != nil {
		return relay.Fatal(err)
	}
	p.transform = enc.Encode
	if p.sink, err = p.resolved.Backend.NewSink(ctx, p.env(), p.resolved.Config); err != nil {
		p.sink = nil // whatever came with the error
		return fmt.Errorf("open %s sink: %w", p.resolved.Backend.Name, err)
	}
	return nil
}

// NewEncoder makes the encoder that the settings ask for.
func NewEncoder(s catalog.Settings, keyColumns []string, version string) (*codec.Encoder, error) {
	return codec.NewEncoder(codec.EncoderConfig{
		Subject: s.SubjectTemplate, Format: s.Format, KeyField: s.KeyField, KeyTemplate: s.KeyTemplate,
		KeyColumns: keyColumns, Headers: s.Headers, Version: version,
	})
}

func (p *pipeline) openReverse(ctx context.Context, state engine.State) error {
	s := p.resolved.Settings
	dec, err := codec.NewDecoder(codec.DecoderConfig{
		Format: s.Format, EventIDFrom: s.EventIDFrom, EventTypeFrom: s.EventTypeFrom, AggregateIDFrom: s.AggregateIDFrom, SourceFrom: s.SourceFrom,
	})
	if err != nil {
		return relay.Fatal(err)
	}
	p.transform = func(batch []relay.Message, buf []byte) []byte {
		dec.Decode(batch)
		return buf
	}
	// The inbox first: a source may begin to take messages as soon as it is open.
	if err := p.openInbox(ctx); err != nil {
		return err
	}
	env := p.env()
	env.Subject, env.Checkpoint = relay.Template{}, state.Checkpoint
	if p.source, err = p.resolved.Backend.NewSource(ctx, env, p.resolved.Config); err != nil {
		p.source = nil // whatever came with the error
		return fmt.Errorf("open %s source: %w", p.resolved.Backend.Name, err)
	}
	return nil
}

func (p *pipeline) openInbox(ctx context.Context) error {
	in, err := inbox.Open(ctx, p.Pool, inboxConfig(p.resolved.Settings, p.job.Pipeline.Name))
	if err != nil {
		return err
	}
	p.sink = in
	return nil
}

func inboxConfig(s catalog.Settings, pipeline string) inbox.Config {
	return inbox.Config{
		Schema: s.InboxSchema, Table: s.InboxTable, Source: pipeline,
		Columns: inbox.Columns{
			ID: s.Reverse.IDColumn, EventType: s.EventTypeColumn, Source: s.SourceColumn, AggregateID: s.AggregateIDColumn,
			Payload: s.Reverse.PayloadColumn, ReceivedAt: s.ReceivedAtColumn, TraceID: s.TraceIDColumn,
		},
	}
}

func (p *pipeline) close() {
	var errs []error
	if p.source != nil {
		errs = append(errs, p.source.Close())
	}
	if p.sink != nil {
		errs = append(errs, p.sink.Close())
	}
	if err := errors.Join(errs...); err != nil {
		p.job.Logger.Debug("close the pipeline's ends", "err", err)
	}
}

// guarantee says what the far end gives, as it was found.
func (p *pipeline) guarantee() string {
	var end any = p.sink
	g := p.resolved.Backend.SinkGuarantee
	if p.job.Pipeline.Direction == relay.Reverse {
		end, g = p.source, p.resolved.Backend.SourceGuarantee
	}
	if found, ok := end.(relay.Guarantor); ok {
		g = found.Guarantee()
	}
	return g.Delivery
}

// recorder keeps the cursor's status up to date, for `status` and for the next
// owner, who trusts only an end in good order. It writes in the background: what
// it records may be that the database is away.
type recorder struct {
	led *store.Ledger
	job *Job

	mu      sync.Mutex
	failing bool
	latest  cursorStatus
	dirty   chan struct{}
	done    chan struct{}
}

type cursorStatus struct{ status, reason string }

const statusTimeout = 5 * time.Second

func newRecorder(ctx context.Context, led *store.Ledger, job *Job) *recorder {
	r := &recorder{led: led, job: job, dirty: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		var wrote cursorStatus
		for range r.dirty {
			r.mu.Lock()
			latest := r.latest
			r.mu.Unlock()
			if latest != wrote {
				r.write(ctx, latest)
				wrote = latest
			}
		}
	}()
	return r
}

func (r *recorder) changed(err error) {
	r.job.Changed(err)
	s := cursorStatus{store.StatusRunning, ""}
	if err != nil {
		s = cursorStatus{store.StatusRetrying, oneLine(err)}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing, r.latest = err != nil, s
	poke(r.dirty)
}

// end records how the run ended.
func (r *recorder) end(ctx context.Context, err error) {
	close(r.dirty)
	<-r.done
	switch {
	case ctx.Err() != nil:
		return // abandoned: the next owner has to look what arrived
	case err == nil && !r.failing:
		r.write(ctx, cursorStatus{store.StatusStopped, ""})
	case err != nil && relay.IsFatal(err):
		r.write(ctx, cursorStatus{store.StatusFailed, oneLine(err)})
	case err != nil:
		r.write(ctx, cursorStatus{store.StatusRetrying, oneLine(err)})
	}
}

func (r *recorder) write(ctx context.Context, s cursorStatus) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusTimeout)
	defer cancel()
	if err := r.led.SetStatus(ctx, s.status, s.reason); err != nil && !errors.Is(err, engine.ErrFenced) {
		r.job.Logger.Debug("record the pipeline's status", "err", err)
	}
}

// Report records that a pipeline cannot be started, in the absence of a lease.
func (b *Builder) Report(ctx context.Context, key catalog.Key, reason string) error {
	return b.store().Report(ctx, key, reason)
}

// Letters counts the dead letters of the group's pipelines.
func (b *Builder) Letters(ctx context.Context) (map[catalog.Key]Letters, error) {
	return b.store().CountDeadLetters(ctx)
}

// CountLetters counts the dead letters of a group's pipelines.
func CountLetters(ctx context.Context, db pg.Querier, group string) (map[catalog.Key]Letters, error) {
	return store.New(db, group).CountDeadLetters(ctx)
}

func (b *Builder) store() store.Store { return store.New(b.Pool, b.Group) }
