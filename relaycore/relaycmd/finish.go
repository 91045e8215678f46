package relaycmd

import (
	"context"
	"errors"
	"fmt"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/identity"
)

// finish ends the upgrade from a relay whose ids have the old form.
func (p *program) finish(ctx context.Context) error {
	done := []identity.Report{}
	err := p.withDatabase(ctx, migrateTimeout, func(ctx context.Context, db *database) (err error) {
		done, err = db.runner.Finish(ctx, db.pipelines)
		return err
	})
	if err != nil {
		err = fmt.Errorf("migrate --finish: %w", err)
	}
	if p.json() {
		return errors.Join(err, p.printJSON(map[string]any{"action": "finish", "outboxes": done}))
	}
	for _, id := range done {
		fmt.Fprintln(p.stdout, id)
	}
	if len(done) == 0 && err == nil {
		fmt.Fprintln(p.stdout, "no pipeline reads an outbox")
	}
	return err
}
