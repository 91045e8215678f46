package ends

import (
	"context"
	"errors"
	"net/url"

	"github.com/jackc/pgx/v5"
)

// inboxEnd is an inbox in another database, of an older PostgreSQL.
type inboxEnd struct{ url string }

func newInbox(ctx context.Context, env Env) (End, error) {
	admin, err := pgx.Connect(ctx, env.Server.URL)
	if err != nil {
		return nil, err
	}
	_, err = admin.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{env.Name}.Sanitize())
	if err = errors.Join(err, admin.Close(ctx)); err != nil {
		return nil, err
	}
	u, err := url.Parse(env.Server.URL)
	if err != nil {
		return nil, err
	}
	u.Path = "/" + env.Name
	e := inboxEnd{u.String()}
	if err := env.Migrate(ctx, e.url); err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, e.url)
	if err != nil {
		return nil, err
	}
	// n counts the rows in the order in which they were written.
	_, err = conn.Exec(ctx, `SELECT pgtrickle.create_inbox('far'); ALTER TABLE pgtrickle.far ADD COLUMN n bigserial`)
	return e, errors.Join(err, conn.Close(ctx))
}

func (e inboxEnd) Sink() map[string]any { return map[string]any{"url": e.url, "table": "far"} }

func (inboxEnd) Source() map[string]any { return nil }

func (e inboxEnd) Arrived(ctx context.Context) ([]Record, error) {
	conn, err := pgx.Connect(ctx, e.url)
	if err != nil {
		return nil, err
	}
	rows, _ := conn.Query(ctx, `SELECT event_id, coalesce(aggregate_id, ''), convert_to(payload::text, 'UTF8') FROM pgtrickle.far ORDER BY n`)
	records, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Record])
	return records, errors.Join(err, conn.Close(ctx))
}

func (inboxEnd) Produce(context.Context, []Record) error { return errors.ErrUnsupported }

func (inboxEnd) Close() {}
