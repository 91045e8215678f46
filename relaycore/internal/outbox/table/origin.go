package table

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

// Origin identifies the server, the database and the table of a checkpoint. A member
// that differs later shows what happened in between.
type Origin struct {
	System   string `json:"system,omitempty"`   // system_identifier; "" = not readable
	Timeline string `json:"timeline,omitempty"` // changes by promotion; "" = not readable
	Database uint32 `json:"db"`
	Table    uint32 `json:"table"`
	File     uint32 `json:"file,omitempty"`     // changes by TRUNCATE and VACUUM FULL
	Sequence uint32 `json:"sequence,omitempty"` // file of the sequence: changes by RESTART
}

//go:embed sql/watch.sql
var watchSQL string

const (
	systemSQL   = `SELECT system_identifier::text FROM pg_control_system()`
	timelineSQL = `SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`
)

// Identify returns where t is, which [Resolve] has just described. It fails on a standby, which keeps no checkpoints.
func Identify(ctx context.Context, q pg.Querier, t *Table) (Origin, error) {
	o := Origin{Database: t.database, Table: t.OID, File: t.Filenode, Sequence: t.Sequence.Filenode}
	if t.recovering {
		return o, errors.New("the server is a standby: checkpoints can only be kept on the primary; " +
			"put both hosts into the URL and add target_session_attrs=read-write")
	}
	err := q.QueryRow(ctx, `SELECT (`+systemSQL+`), (`+timelineSQL+`)`).Scan(&o.System, &o.Timeline)
	switch {
	case err == nil:
		return o, nil
	case !pg.IsUnavailable(err):
		return o, fmt.Errorf("identify server: %w", err)
	}
	// The role may not run one of the two, or both.
	if o.System, err = optional(ctx, q, systemSQL); err != nil {
		return o, fmt.Errorf("identify server: %w", err)
	}
	if o.Timeline, err = optional(ctx, q, timelineSQL); err != nil {
		return o, fmt.Errorf("identify server: %w", err)
	}
	return o, nil
}

// optional runs a query that a plain role may not be allowed to run; "" is returned then.
func optional(ctx context.Context, q pg.Querier, sql string) (value string, err error) {
	err = q.QueryRow(ctx, sql).Scan(&value)
	if pg.IsUnavailable(err) {
		return "", nil
	}
	return value, err
}

// Watched is what a running source looks at again and again.
type Watched struct {
	Origin     Origin // System and Database are not read again
	Recovering bool
	HasXid     bool // the table can be read by snapshot windows
}

// Watch looks up t again. It reads the timeline only if o has one, because the role
// may not be allowed to. It reads HasXid only if askXid is set.
func Watch(ctx context.Context, q pg.Querier, t *Table, o Origin, xidColumn string, askXid bool) (Watched, error) {
	timeline := `SELECT ''`
	if o.Timeline != "" {
		timeline = timelineSQL
	}
	w := Watched{Origin: o}
	err := q.QueryRow(ctx, strings.Replace(watchSQL, "{timeline}", timeline, 1), t.Qualified(), t.Sequence.OID, xidColumn, askXid).
		Scan(&w.Origin.Table, &w.Origin.File, &w.Origin.Sequence, &w.Recovering, &w.Origin.Timeline, &w.HasXid)
	if err != nil {
		return w, fmt.Errorf("look up outbox %s: %w", t.Qualified(), err)
	}
	return w, nil
}

// Change is what has happened to a table between two readings of its [Origin].
type Change int

// What Since returns.
const (
	Unchanged Change = iota
	Promoted         // another timeline: a standby was promoted, or the server restored
	Restarted        // the table was replaced, or truncated with its ids restarted
	Elsewhere        // another server or database
)

// Since compares where the table was with where it is. Members that either side could
// not read are not compared. The detail names what differs, if something does.
func (o Origin) Since(was Origin, partitioned bool) (c Change, detail string) {
	switch {
	case was.System != "" && o.System != "" && was.System != o.System:
		return Elsewhere, "server " + was.System + " and this is server " + o.System
	case was.Database != o.Database:
		return Elsewhere, fmt.Sprintf("database %d and this is database %d", was.Database, o.Database)
	case was.Table != o.Table:
		return Restarted, "the table was created again"
	case was.Sequence != o.Sequence && was.File != o.File && !partitioned:
		return Restarted, "the table was truncated with its ids restarted"
	case was.Timeline != "" && o.Timeline != "" && was.Timeline != o.Timeline:
		return Promoted, ""
	}
	return Unchanged, ""
}
