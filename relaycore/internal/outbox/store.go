package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Store reads what is stored of the progress of forward pipelines.
type Store interface {
	// Checkpoint returns a pipeline's checkpoint; found is false if none is stored.
	Checkpoint(ctx context.Context, pipeline string) (c relay.Checkpoint, found bool, err error)
	// Offset returns the id behind which a pipeline starts if it has no checkpoint.
	// found is false if there is none or if the role may not read it.
	Offset(ctx context.Context, pipeline string) (id int64, found bool, err error)
}

// tables is the [Store] of a group in the relay's own tables.
type tables struct {
	q     pg.Querier
	group string
}

func (s tables) Checkpoint(ctx context.Context, pipeline string) (c relay.Checkpoint, found bool, err error) {
	var raw []byte
	err = s.q.QueryRow(ctx, `SELECT checkpoint::text, last_id FROM pgtrickle.relay_cursors WHERE relay_group_id = $1 AND direction = 'forward' AND pipeline = $2`,
		s.group, pipeline).Scan(&raw, &c.LastID)
	switch {
	case errors.Is(err, pgx.ErrNoRows), pg.IsMissing(err):
		return relay.Checkpoint{}, false, nil
	case err != nil:
		return c, false, fmt.Errorf("read checkpoint: %w", err)
	}
	c.State = raw
	return c, true, nil
}

func (s tables) Offset(ctx context.Context, pipeline string) (id int64, found bool, err error) {
	const readable = `SELECT coalesce(has_table_privilege(to_regclass('pgtrickle.relay_consumer_offsets'), 'SELECT'), false)`
	if err := s.q.QueryRow(ctx, readable).Scan(&found); err != nil || !found {
		return 0, false, err
	}
	err = s.q.QueryRow(ctx, `SELECT last_change_id FROM pgtrickle.relay_consumer_offsets WHERE relay_group_id = $1 AND pipeline_id = $2`,
		s.group, pipeline).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read relay_consumer_offsets: %w", err)
	}
	return id, true, nil
}
