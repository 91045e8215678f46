package inbox

import (
	"cmp"
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// compareSQL returns the statement that finds events whose id the table has with another
// payload. It is empty if the role may not read the payload, or if the payload is not
// JSON and so has no one form.
func (t *table) compareSQL(id, payload attribute, source string) string {
	if !id.selects || !payload.selects || payload.base != pgtype.JSONBOID && payload.base != pgtype.JSONOID {
		return ""
	}
	from := "NULL"
	if source != "" {
		from = "old." + source + "::pg_catalog.text"
	}
	idCast := ""
	if cast := t.columns[0].cast; cast != "" {
		idCast = "::" + cast
	}
	return strings.NewReplacer("{table}", t.name, "{id}", pgx.Identifier{id.name}.Sanitize(), "{cast}", idCast,
		"{payload}", pgx.Identifier{payload.name}.Sanitize(), "{from}", from).Replace(`
		SELECT m.id, coalesce({from}, '') FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS m(id, payload)
		JOIN {table} AS old ON old.{id} OPERATOR(pg_catalog.=) m.id{cast}
		WHERE old.{payload}::pg_catalog.jsonb OPERATOR(pg_catalog.<>) m.payload::pg_catalog.jsonb`)
}

// findConflicts counts the messages of batch that were taken for copies although the
// table has another event under their id, and logs the first. It is called after a batch
// that had copies. An error is no reason to fail what is committed.
func (s *Sink) findConflicts(ctx context.Context, conn *pgx.Conn, batch []relay.Message) {
	if s.table.compare == "" {
		return
	}
	ids, payloads := make([]string, len(batch)), make([]string, len(batch))
	origin := make(map[string]string, len(batch))
	for i := range batch {
		ids[i], payloads[i] = batch[i].ID, string(batch[i].Row)
		origin[batch[i].ID] = cmp.Or(batch[i].Origin, s.source)
	}
	rows, err := conn.Query(ctx, s.table.compare, ids, payloads)
	n, first, stored := 0, "", ""
	if err == nil {
		var id, from string
		_, err = pgx.ForEachRow(rows, []any{&id, &from}, func() error {
			if n++; n == 1 {
				first, stored = id, from
			}
			return nil
		})
	}
	if err != nil {
		s.log.DebugContext(ctx, "cannot compare with the inbox", "inbox", s.table.name, "err", err)
		return
	}
	if n > 0 {
		s.conflicts += n
		s.log.WarnContext(ctx, "another event has this id", "inbox", s.table.name, "id", first, "origin", origin[first],
			"stored_origin", stored, "events", n,
			"effect", "the inbox keeps the first; give the producers ids of their own, or set id_scope to far_end or pipeline")
	}
}

// TakeConflicts implements [relay.Conflicts].
func (s *Sink) TakeConflicts() int {
	n := s.conflicts
	s.conflicts = 0
	return n
}
