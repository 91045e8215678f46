package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Accounting says what has become of every row that an outbox table holds:
//
//	Committed = Delivered + Dead + Parked + Pending + Unaccounted
//
// A row of several messages counts as dead or parked when one of them is.
type Accounting struct {
	Table       string `json:"table"`
	Strategy    string `json:"strategy"`
	Committed   int64  `json:"committed"`
	Delivered   int64  `json:"delivered"`
	Dead        int64  `json:"dead"`
	Parked      int64  `json:"parked"` // or waiting to be delivered again
	Pending     int64  `json:"pending"`
	Unaccounted int64  `json:"unaccounted"` // must be zero
	// Overtaken counts ids that were gone before they could be delivered; rolled
	// back ones among them cannot be told from deleted ones.
	Overtaken int64 `json:"overtaken"`
	LastID    int64 `json:"last_id"` // everything up to it is settled
}

// Verify accounts for every row of the pipeline's outbox in one snapshot, going
// by the stored checkpoint. It reads the whole index of the table.
func Verify(ctx context.Context, pool *pgxpool.Pool, cfg Config) (Accounting, error) {
	cfg.defaults()
	var acc Accounting
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		acc, err = verify(ctx, tx, cfg)
		return err
	})
	if err != nil {
		return acc, fmt.Errorf("verify pipeline %q: %w", cfg.Pipeline, err)
	}
	return acc, nil
}

func verify(ctx context.Context, tx pgx.Tx, cfg Config) (Accounting, error) {
	t, err := resolve(ctx, tx, cfg.Outbox, cfg.Settings)
	if err != nil {
		return Accounting{}, err
	}
	acc := Accounting{Table: t.schema + "." + t.name}
	var c relay.Checkpoint
	var raw []byte
	err = tx.QueryRow(ctx, `SELECT checkpoint::text, last_id FROM pgtrickle.relay_cursors WHERE relay_group_id = $1 AND direction = 'forward' AND pipeline = $2`, cfg.Group, cfg.Pipeline).Scan(&raw, &c.LastID)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return acc, fmt.Errorf("read checkpoint: %w", err)
	}
	c.State = raw
	st, err := parseState(c)
	if err != nil {
		return acc, err
	}
	pending := "true"
	if st != nil {
		if pending, err = st.pending(t); err != nil {
			return acc, err
		}
		acc.Strategy, acc.LastID, acc.Overtaken = st.Mode, max(st.Safe, 0), st.Expired
	}
	err = tx.QueryRow(ctx, `WITH rows AS MATERIALIZED (SELECT `+quote(t.id)+`::bigint AS id, `+pending+` AS pending FROM `+t.qualified()+`),
		letters AS (SELECT outbox_id AS id, bool_or(status = 'dead') AS dead FROM pgtrickle.relay_dead_letters
			WHERE relay_group_id = $1 AND direction = 'forward' AND pipeline = $2 AND outbox_id IS NOT NULL GROUP BY outbox_id)
		SELECT count(*), count(*) FILTER (WHERE r.pending AND l.id IS NULL), count(*) FILTER (WHERE l.dead), count(*) FILTER (WHERE NOT l.dead)
		FROM rows r LEFT JOIN letters l USING (id)`, cfg.Group, cfg.Pipeline).Scan(&acc.Committed, &acc.Pending, &acc.Dead, &acc.Parked)
	if err != nil {
		return acc, fmt.Errorf("count rows of %s: %w", t.qualified(), err)
	}
	if st != nil {
		var a audit
		a.parse(st.Audit)
		if acc.Unaccounted, _, err = a.compare(ctx, tx, t, st.Safe); err != nil {
			return acc, err
		}
	}
	acc.Delivered = acc.Committed - acc.Pending - acc.Dead - acc.Parked - acc.Unaccounted
	return acc, nil
}

// pending renders the condition that a row is not settled yet.
func (st *state) pending(t *table) (string, error) {
	m, err := st.mark()
	if err != nil {
		return "", err
	}
	id := quote(t.id)
	if st.Mode == modeWindow {
		if t.xid == "" {
			return "", fmt.Errorf("the checkpoint is one of snapshot windows, and %s has no column of type xid8", t.qualified())
		}
		cond := "NOT pg_visible_in_snapshot(" + quote(t.xid) + ", " + literal(m.lo.text) + ")"
		if m.at != beginning {
			cond += " AND (" + id + " > " + itoa(m.at)
			if m.open {
				cond += " OR NOT pg_visible_in_snapshot(" + quote(t.xid) + ", " + literal(m.hi.text) + ")"
			}
			cond += ")"
		}
		return cond, nil
	}
	var b strings.Builder
	b.WriteString(id + " > " + itoa(m.last))
	for _, h := range m.holes {
		b.WriteString(" OR " + id + " BETWEEN " + itoa(h.lo) + " AND " + itoa(h.hi))
	}
	if m.open {
		b.WriteString(" OR " + id + " > greatest(" + literal(itoa(m.at)) + "::bigint, " + literal(itoa(m.from)) + "::bigint)")
		for _, f := range m.fill {
			if f > m.at {
				b.WriteString(" OR " + id + " = " + itoa(f))
			}
		}
	}
	return "(" + b.String() + ")", nil
}
