package relaycmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

type previewOptions struct {
	count int
	from  int64
}

func (p *program) previewCommand() *ffcli.Command {
	var o previewOptions
	fs := p.flagSet()
	fs.IntVar(&o.count, "n", 5, "`number` of messages")
	fs.Int64Var(&o.from, "from", 0, "first outbox `id`; default: the first that is not delivered")

	return p.withArgs(1, 1, &ffcli.Command{
		Name: "preview", ShortUsage: "preview NAME [-n N] [--from ID]", FlagSet: fs,
		ShortHelp: "show the next messages of a forward pipeline as they would be sent",
	}, func(ctx context.Context, args []string) error {
		return p.showPreview(ctx, &o, args[0])
	})
}

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
	Error       string            `json:"error,omitempty"`    // why it would become a dead letter
	Filtered    string            `json:"filtered,omitempty"` // the filter, if it drops the message
	Row         json.RawMessage   `json:"row,omitempty"`      // before filter and transform, if there is one
}

func (p *program) showPreview(ctx context.Context, o *previewOptions, name string) error {
	if o.count < 1 {
		return fmt.Errorf("-n is %d; must be at least 1", o.count)
	}

	var messages []preview
	err := p.withDatabase(ctx, commandTimeout, func(ctx context.Context, db *database) error {
		pl, err := db.forward(name)
		if err != nil {
			return err
		}
		messages, err = p.previews(ctx, db, pl, o)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("preview %q: the outbox was not read within %s, it is locked or slow: %w", pl.Name, commandTimeout, err)
		case err != nil:
			return fmt.Errorf("preview %q: %w", pl.Name, err)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case p.json():
		return p.printJSON(messages)
	}
	p.printPreviews(messages)
	return nil
}

// previews reads o.count messages, or fewer if the outbox ends before.
func (p *program) previews(ctx context.Context, db *database, pl catalog.Pipeline, o *previewOptions) ([]preview, error) {
	r, err := db.runner.Read(ctx, pl, o.from, p.logger())
	if err != nil {
		return nil, err
	}
	defer r.Source.Close() //nolint:errcheck // it was only read

	conceal, messages := pl.Concealer().Text, []preview{}
	for len(messages) < o.count {
		batch, err := r.Next(ctx, o.count-len(messages))
		if err != nil || len(batch) == 0 {
			return messages, err
		}
		for i := range batch {
			messages = append(messages, newPreview(&batch[i], &r.Settings, conceal))
		}
	}
	return messages, nil
}

func newPreview(m *relay.Message, s *catalog.Settings, conceal func(string) string) preview {
	v := preview{
		ID: m.ID, OutboxID: m.OutboxID, Op: m.Op, Subject: conceal(m.Subject), Key: m.Key, ContentType: m.ContentType,
		Headers: make(map[string]string),
	}
	for _, h := range m.WireHeaders(nil) {
		v.Headers[h.Name] = conceal(h.Value)
	}
	if v.Body = slices.Clone(json.RawMessage(m.Body)); !json.Valid(v.Body) {
		v.Body, _ = json.Marshal(string(m.Body))
	}
	if s.Filter+s.Transform != "" {
		v.Row = slices.Clone(json.RawMessage(m.Row))
	}
	switch {
	case errors.Is(m.Err, relay.ErrFiltered):
		v.Filtered = conceal(s.Filter)
	case m.Err != nil:
		v.Error = conceal(m.Err.Error())
	}
	return v
}

func (p *program) printPreviews(messages []preview) {
	if len(messages) == 0 {
		fmt.Fprintln(p.stdout, "nothing to deliver; --from ID shows delivered rows")
	}
	for _, m := range messages {
		fmt.Fprintf(p.stdout, "%s\n  subject  %s\n  key      %s\n", printable(m.ID, m.Subject, orDash(m.Key))...)
		for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
			fmt.Fprintf(p.stdout, "  header   %s: %s\n", printable(name, m.Headers[name])...)
		}
		if m.Row != nil {
			fmt.Fprintf(p.stdout, "  row      %s\n", printableBody(m.Row))
		}
		if m.Filtered != "" {
			fmt.Fprintf(p.stdout, "  FILTERED by %s\n", printable(m.Filtered)...)
			continue
		}
		if m.Error != "" {
			fmt.Fprintf(p.stdout, "  ERROR    %s\n", printable(m.Error)...)
		}
		fmt.Fprintf(p.stdout, "  body     %s\n", printableBody(m.Body))
	}
}
