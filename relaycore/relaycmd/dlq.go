package relaycmd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
)

// dlqOptions select dead letters.
type dlqOptions struct {
	filter store.DeadLetterFilter
	all    bool // dlq discard only
}

func (o *dlqOptions) register(fs *flag.FlagSet) {
	f := &o.filter
	fs.Func("id", "`ids` of dead letters, separated by commas", func(text string) (err error) {
		f.IDs, err = parseIDs(text)
		return err
	})
	fs.StringVar((*string)(&f.Direction), "direction", "", "`forward|reverse`, if two pipelines have the name")
	fs.StringVar(&f.Key, "key", "", "ordering `key`")
	fs.StringVar(&f.Class, "class", "", "`class` of error, as dlq list shows it")
	fs.Func("after", "only those stored at or after this `time`, such as 2026-01-31T10:00:00Z", timeFlag(&f.After))
	fs.Func("before", "only those stored before this `time`", timeFlag(&f.Before))
}

func parseIDs(text string) (ids []int64, err error) {
	for s := range strings.SplitSeq(text, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		id, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is not a number", s)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func timeFlag(target *time.Time) func(string) error {
	return func(text string) (err error) {
		if *target = (time.Time{}); text == "" {
			return nil
		}
		if *target, err = time.Parse(time.RFC3339, text); err != nil {
			return errors.New("not a time such as 2026-01-31T10:00:00Z")
		}
		return nil
	}
}

// selective reports whether the options select some dead letters of a pipeline.
func (o *dlqOptions) selective() bool {
	f := &o.filter
	return len(f.IDs) > 0 || f.Key != "" || f.Class != "" || !f.After.IsZero() || !f.Before.IsZero()
}

func (p *program) dlqListCommand() *ffcli.Command {
	var o dlqOptions
	fs := p.flagSet()
	o.register(fs)
	fs.IntVar(&o.filter.Limit, "limit", defaultLimit, "maximum `number` of lines; 0 is no limit")

	return p.withArgs(0, 1, &ffcli.Command{
		Name: "list", ShortUsage: "dlq list [NAME] [filters]", ShortHelp: "show dead letters and the messages parked behind them", FlagSet: fs,
	}, func(ctx context.Context, args []string) error {
		o.filter.Pipeline = strings.Join(args, "") // none: of all pipelines
		return p.listDeadLetters(ctx, o.filter)
	})
}

// defaultLimit is how many dead letters a list shows.
const defaultLimit = 100

func (p *program) dlqSummaryCommand() *ffcli.Command {
	var o dlqOptions
	fs := p.flagSet()
	o.register(fs)

	return p.withArgs(0, 1, &ffcli.Command{
		Name: "summary", ShortUsage: "dlq summary [NAME] [filters]", ShortHelp: "count dead letters by pipeline, class and error", FlagSet: fs,
	}, func(ctx context.Context, args []string) error {
		o.filter.Pipeline = strings.Join(args, "") // none: of all pipelines
		return p.summarizeDeadLetters(ctx, o.filter)
	})
}

func (p *program) dlqRetryCommand() *ffcli.Command {
	var o dlqOptions
	fs := p.flagSet()
	o.register(fs)

	return p.withArgs(1, 1, &ffcli.Command{
		Name: "retry", ShortUsage: "dlq retry NAME [filters]", ShortHelp: "deliver dead letters and the messages parked behind them", FlagSet: fs,
	}, func(ctx context.Context, args []string) error {
		o.filter.Pipeline = args[0]
		return p.changeDeadLetters(ctx, "retry", o.filter, store.Store.RetryDeadLetters)
	})
}

func (p *program) dlqDiscardCommand() *ffcli.Command {
	var o dlqOptions
	fs := p.flagSet()
	o.register(fs)
	fs.BoolVar(&o.all, "all", false, "discard all dead letters of the pipeline")

	return p.withArgs(1, 1, &ffcli.Command{
		Name: "discard", ShortUsage: "dlq discard NAME filters|--all", FlagSet: fs,
		ShortHelp: "drop dead letters, and deliver the messages parked behind them",
	}, func(ctx context.Context, args []string) error {
		if !o.selective() && !o.all {
			return errors.New("dlq discard drops messages for good: select them with --id, --key, --class, --after or --before, or add --all")
		}
		o.filter.Pipeline = args[0]
		return p.changeDeadLetters(ctx, "discard", o.filter, store.Store.DiscardDeadLetters)
	})
}

func (p *program) summarizeDeadLetters(ctx context.Context, filter store.DeadLetterFilter) error {
	var found []store.DeadLetterSummary
	err := p.withDatabase(ctx, commandTimeout, func(ctx context.Context, db *database) (err error) {
		if found, err = db.store.SummarizeDeadLetters(ctx, filter); err != nil {
			err = fmt.Errorf("dlq summary: %w", err)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case p.json():
		return p.printJSON(found)
	}

	w := newTable(p.stdout)
	w.row("PIPELINE", "DIRECTION", "STATUS", "CLASS", "COUNT", "FIRST", "LAST", "ERROR")
	for _, s := range found {
		w.row(s.Pipeline, s.Direction, s.Status, s.Class, s.Count, s.First, s.Last, strings.ReplaceAll(s.Error, "\n", " "))
	}
	return w.Flush()
}

func (p *program) listDeadLetters(ctx context.Context, filter store.DeadLetterFilter) error {
	limit := filter.Limit
	if limit > 0 {
		filter.Limit++ // one more shows that there are more
	}
	var found []store.DeadLetter
	err := p.withDatabase(ctx, commandTimeout, func(ctx context.Context, db *database) (err error) {
		if found, err = db.store.ListDeadLetters(ctx, filter); err != nil {
			err = fmt.Errorf("dlq list: %w", err)
		}
		return err
	})
	if err != nil {
		return err
	}
	more := limit > 0 && len(found) > limit
	if more {
		found = found[:limit]
	}
	if p.json() {
		return p.printJSON(found)
	}

	w := newTable(p.stdout)
	w.row("ID", "PIPELINE", "DIRECTION", "STATUS", "CLASS", "ATTEMPTS", "ORIGINAL", "KEY", "MESSAGE", "STORED", "ERROR")
	for _, l := range found {
		w.row(l.ID, l.Pipeline, l.Direction, l.Status, l.Class, l.Attempts, orDash(l.Original), l.Key, l.MessageID, l.Created,
			strings.ReplaceAll(l.Error, "\n", " "))
	}
	if more {
		fmt.Fprintf(w, "(more than %d: raise --limit, or see dlq summary)\n", limit)
	}
	return w.Flush()
}

type changeFunc func(s store.Store, ctx context.Context, f store.DeadLetterFilter) (int64, error)

func (p *program) changeDeadLetters(ctx context.Context, action string, filter store.DeadLetterFilter, change changeFunc) error {
	var n int64
	err := p.withDatabase(ctx, commandTimeout, func(ctx context.Context, db *database) (err error) {
		if n, err = change(db.store, ctx, filter); err != nil {
			err = fmt.Errorf("dlq %s: %w", action, err)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case p.json():
		return p.printJSON(map[string]any{"action": action, "letters": n})
	}
	fmt.Fprintf(p.stdout, "%s: %d dead letters\n", action, n)
	return nil
}
