package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/inbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/codec"
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/reshape"
	"github.com/grove/pgtrickle-relay/relaycore/internal/supervisor"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// ends are the source and the sink of one pipeline.
type ends struct {
	*Runner
	pipeline  catalog.Pipeline
	resolved  catalog.Resolved
	log       *slog.Logger
	source    relay.Source
	sink      relay.Sink
	identity  string // see [relay.Env]
	transform func(batch []relay.Message, buf []byte) []byte
	// keepFarEnds is nil for commands, which hold no lease.
	keepFarEnds func(ctx context.Context, state string) error
	countLoss   func()
}

// outboxOptions are what only a running pipeline gives its outbox.
type outboxOptions struct {
	wake   <-chan struct{}
	polled func(found bool)
	epoch  int64
}

func (e *ends) open(ctx context.Context, from engine.State, o outboxOptions) error {
	e.identity = from.Identity
	if e.pipeline.Direction == relay.Forward {
		return e.openForward(ctx, from.Checkpoint, o)
	}
	return e.openReverse(ctx, from)
}

func (e *ends) env() relay.Env {
	return relay.Env{
		Pipeline: e.pipeline.Name, Group: e.Group, Identity: e.identity,
		Logger: e.log, Subject: e.resolved.Settings.SubjectTemplate, Control: e.resolved.Access.Control,
		OpenFile: e.resolved.Access.Open, ReadFile: e.resolved.Access.ReadFile,
		MaxAnswer: e.Budget.Largest(1), // a sink reads back what it has sent, one copy at a time
	}
}

func (e *ends) openForward(ctx context.Context, from relay.Checkpoint, o outboxOptions) error {
	s := e.resolved.Settings
	config := e.outboxConfig()
	config.Group, config.Pipeline, config.Checkpoint = e.Group, e.pipeline.Name, from
	config.Epoch, config.Wake, config.Polled = o.epoch, o.wake, o.polled
	src, err := outbox.Open(ctx, e.Readers, config)
	if err != nil {
		return err
	}
	e.source = src
	if _, _, watched := src.Numbering(); watched {
		quiet := supervisor.WatchedPoll
		if src.Follows() {
			quiet = outbox.FollowEvery
		}
		src.SetPollInterval(max(quiet, s.PollInterval.D()))
	}
	encoder, err := newEncoder(s, src, e.Version, e.log)
	if err != nil {
		return relay.Fatal(err)
	}
	e.transform = encoder.Encode
	if err := e.openSink(ctx); err != nil {
		return err
	}
	if e.streams() {
		src.Stream()
	}
	return nil
}

// outboxConfig returns what follows from the pipeline, with no position.
func (e *ends) outboxConfig() outbox.Config {
	s := e.resolved.Settings
	return outbox.Config{
		Outbox: s.StreamTable, Settings: s.Forward.Settings, KeyFields: keyFields(s), KeepInternal: s.KeepInternalColumns,
		Identity: e.identity, PollInterval: s.PollInterval.D(), Logger: e.log, MaxRow: e.Budget.Largest(copies(&e.resolved)),
	}
}

// streams reports whether rows that are too large for memory are sent while they are read.
// Columns, filter and transform need the whole row.
func (e *ends) streams() bool {
	s := e.resolved.Settings
	sink, ok := e.sink.(relay.Streamer)
	return ok && sink.Streams() && reshape.NewColumns(s.Columns) == nil && s.Filter == "" && s.Transform == ""
}

// lookUpTimeout bounds the query for a primary key.
const lookUpTimeout = 10 * time.Second

// keyFields returns the fields of a row that the encoder needs beside the body.
func keyFields(s catalog.Settings) []string {
	fields := append(s.KeyTemplate.Fields(), s.SubjectTemplate.Fields()...)
	if s.KeyField != "" {
		fields = append(fields, s.KeyField)
	}
	for _, value := range s.Headers {
		fields = append(fields, value.Fields()...)
	}
	return fields
}

func newEncoder(s catalog.Settings, src *outbox.Source, version string, log *slog.Logger) (*codec.Encoder, error) {
	jq, err := reshape.NewJQ(s.JQConfig)
	if err != nil {
		return nil, err
	}
	keys, warned := src.KeyColumns(), false
	lookUp := func() ([]string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), lookUpTimeout)
		defer cancel()
		now, err := src.LookUpKey(ctx)
		switch {
		case err != nil:
		case !slices.Equal(now, keys):
			log.Info("primary key has changed", "before", keys, "now", now)
			keys = now
		case !warned:
			warned = true
			log.Warn("row lacks its primary key", "columns", keys,
				"effect", "rows without these columns have no key, and no order", "cure", "set key_field or key_template")
		}
		return now, err
	}
	return codec.NewEncoder(codec.EncoderConfig{
		Subject: s.SubjectTemplate, Format: s.Format, KeyField: s.KeyField, KeyTemplate: s.KeyTemplate,
		KeyColumns: keys, LookUpKey: lookUp, Headers: s.Headers, Version: version, KeepInternal: s.KeepInternalColumns,
		Columns: reshape.NewColumns(s.Columns), JQ: jq,
	})
}

func (e *ends) openSink(ctx context.Context) error {
	sink, err := e.resolved.Backend.Sink.Open(ctx, e.env(), e.resolved.Config)
	if err != nil {
		return fmt.Errorf("open %s sink: %w", e.resolved.Backend.Name, err)
	}
	e.sink = sink
	return nil
}

// openReverse opens the inbox first, because a source may receive messages as soon
// as it is open.
func (e *ends) openReverse(ctx context.Context, from engine.State) error {
	s := e.resolved.Settings
	jq, err := reshape.NewJQ(s.JQConfig)
	if err != nil {
		return relay.Fatal(err)
	}
	idPrefix := ""
	if s.IDScope == catalog.IDScopePipeline {
		idPrefix = "pipeline:" + url.QueryEscape(e.pipeline.Name) + ":" // no name can contain another's prefix
	}
	decoder, err := codec.NewDecoder(codec.DecoderConfig{
		Format: s.Format, EventIDFrom: s.EventIDFrom, IDPrefix: idPrefix, EventTypeFrom: s.EventTypeFrom,
		AggregateIDFrom: s.AggregateIDFrom, SourceFrom: s.SourceFrom,
		Columns: reshape.NewColumns(s.Columns), JQ: jq, Check: e.checkLength,
	})
	if err != nil {
		return relay.Fatal(err)
	}
	e.transform = func(batch []relay.Message, buf []byte) []byte {
		decoder.Decode(batch)
		return buf
	}
	if err := e.openInbox(ctx); err != nil {
		return err
	}
	env := e.env()
	env.Identity, env.Subject, env.Checkpoint = "", relay.Template{}, from.Checkpoint
	env.ScopeIDs = s.IDScope != catalog.IDScopeGlobal
	env.MaxMessage, env.MaxAnswer = e.maxMessage(), e.Budget.Largest(budget.DefaultCopies)
	env.FarEnds, env.KeepFarEnds, env.CountLoss = from.FarEnds, e.keepFarEnds, e.countLoss
	source, err := e.resolved.Backend.Source.Open(ctx, env, e.resolved.Config)
	if err != nil {
		return fmt.Errorf("open %s source: %w", e.resolved.Backend.Name, err)
	}
	e.source = source
	return nil
}

// copiesToInbox is how many times a message is in memory on its way to an inbox. The
// source's client has it, it has a body, and pgx makes an array and a message of that.
const copiesToInbox = 4

// copies is how many times a message is in memory while it is sent; 0 is the default.
func copies(r *catalog.Resolved) int {
	if r.Settings.InboxTable != "" {
		return copiesToInbox
	}
	return r.Backend.Copies
}

// maxMessage returns the most bytes that a body for the inbox may have; 0 is no bound.
func (e *ends) maxMessage() int64 {
	memory, set := e.Budget.Largest(copiesToInbox), int64(e.resolved.Settings.MaxMessageBytes)
	if memory == 0 || set > 0 && set < memory {
		return set
	}
	return memory
}

// checkLength refuses a message whose body is too large for the inbox.
func (e *ends) checkLength(m *relay.Message) error {
	length, most := int64(len(m.Body)), e.maxMessage()
	switch {
	case most == 0 || length <= most:
		return nil
	case most == int64(e.resolved.Settings.MaxMessageBytes):
		return relay.Permanent(&budget.TooLargeError{
			What: "the message", Length: length, Max: most, By: "max_message_bytes", Cure: "set a larger max_message_bytes",
		})
	}
	return relay.Permanent(budget.TooLargeForMemory("the message", length, most))
}

func (e *ends) openInbox(ctx context.Context) error {
	s := e.resolved.Settings
	sink, err := inbox.Open(ctx, e.Inboxes, inbox.Config{
		Schema: s.InboxSchema, Table: s.InboxTable, Source: e.pipeline.Name, Logger: e.log,
		Columns: inbox.Columns{
			ID: s.Reverse.IDColumn, EventType: s.EventTypeColumn, Source: s.SourceColumn, AggregateID: s.AggregateIDColumn,
			Payload: s.Reverse.PayloadColumn, ReceivedAt: s.ReceivedAtColumn, TraceID: s.TraceIDColumn,
		},
	})
	if err != nil {
		return err
	}
	e.sink = sink
	return nil
}

func (e *ends) close() {
	var errs []error
	if e.source != nil {
		errs = append(errs, e.source.Close())
	}
	if e.sink != nil {
		errs = append(errs, e.sink.Close())
	}
	if err := errors.Join(errs...); err != nil {
		e.log.Debug("cannot close the pipeline's ends", "err", err)
	}
}

// outboxName returns the name of the outbox table without its schema and quotes, as
// notifications have it; "" for a reverse pipeline.
func (e *ends) outboxName() string {
	src, ok := e.source.(*outbox.Source)
	if !ok {
		return ""
	}
	table := src.Table()
	return strings.Trim(table[strings.LastIndexByte(table, '.')+1:], `"`)
}

// guarantee returns what the far end gives: as it was found there, or else as the
// backend declares it.
func (e *ends) guarantee() relay.Guarantee {
	var end any = e.sink
	declared := e.resolved.Backend.SinkGuarantee
	if e.pipeline.Direction == relay.Reverse {
		end, declared = e.source, e.resolved.Backend.SourceGuarantee
	}
	if found, ok := end.(relay.Guarantor); ok {
		return found.Guarantee()
	}
	return declared
}
