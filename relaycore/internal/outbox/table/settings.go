package table

import "cmp"

// Settings are the configuration keys of a forward pipeline that concern its outbox.
// [Settings.WithDefaults] makes the zero value valid, and it fits every outbox that the
// extension or the relay created.
type Settings struct {
	Strategy       string `json:"outbox_strategy" relay:"enum=auto|window|fence" doc:"How the outbox is read: by snapshot windows, which need a column of type xid8, or by the gap fence. auto uses windows if the column exists."`
	IDColumn       string `json:"id_column" doc:"Column that numbers the rows. Default: id, else the only column of the primary key."`
	XidColumn      string `json:"xid_column" doc:"Column of type xid8 that defaults to pg_current_xact_id(). Default: the one that exists."`
	PayloadColumn  string `json:"payload_column" doc:"Column that holds the event. Default: payload."`
	OpColumn       string `json:"op_column" doc:"Column with insert, update or delete. Default: none, every row is an insert. For your own tables only."`
	KeyColumn      string `json:"key_column" doc:"Column whose value is the ordering key. Default: none. For your own tables only."`
	CreatedColumn  string `json:"created_at_column" doc:"Column with the time at which the row was written. Default: created_at, if it exists."`
	HeadersColumn  string `json:"headers_column" doc:"Column of type jsonb with an object whose members become headers. Default: none. For your own tables only."`
	SequenceCache  string `json:"sequence_cache" relay:"enum=refuse|accept" doc:"Whether windows may read an outbox whose sequence hands out ids in bulk (CACHE above 1). No row is lost, but rows of a key keep their order only if one session at a time writes the key. Progress, on which retention waits, advances only as sessions end."`
	Startup        string `json:"startup" doc:"Where a pipeline begins when it runs for the first time: earliest, the oldest row of the outbox; latest, rows that commit from then on; at:ID, the row with that id; snapshot, the rows of the captured table first, and then changes."`
	SnapshotRate   int    `json:"snapshot_rate" relay:"min=0" doc:"Rows a second that startup snapshot reads of the captured table at most; 0 is no limit."`
	Snapshot       string `json:"snapshot" relay:"enum=diff|emit" doc:"What is sent of an outbox whose rows are snapshots of a stream table (pg_trickle 0.37 to 0.45): emit sends each snapshot whole; diff compares it with the one before, and sends inserts, updates and deletes."`
	DiffState      string `json:"diff_state" relay:"enum=rows|keys" doc:"What diff keeps of the last snapshot's rows: rows, all of it; keys, the key fields alone, so that updates have no row before, and deletes have the key fields only."`
	SnapshotMarker bool   `json:"snapshot_marker" doc:"Whether a message with op snapshot_end follows each snapshot that is sent, and each difference that is not empty. It is published once all before it is confirmed or a dead letter."`
	OnRestore      string `json:"on_restore" relay:"enum=refuse|continue|fork|rebase" doc:"What to do if the database is not the one that the checkpoint was made in. refuse does not start. continue goes on behind the highest id known to be delivered, and can repeat rows; their ids stay the same, as after pg_upgrade or a move. fork does the same with ids of its own, for a copy whose original goes on. rebase is continue."`
	DedupKeyFormat string `json:"dedup_key_format" relay:"enum=unique|legacy" doc:"Form of message ids. unique ids differ from those of every other outbox and pipeline. legacy ids are TABLE:ID:INDEX, which two databases, or two pipelines into one stream, share."`
}

// DefaultSettings returns the settings with every default filled in.
func DefaultSettings() Settings { return Settings{}.WithDefaults() }

// WithDefaults returns s with defaults in place of empty values.
func (s Settings) WithDefaults() Settings {
	s.Strategy = cmp.Or(s.Strategy, "auto")
	s.SequenceCache = cmp.Or(s.SequenceCache, "refuse")
	s.Startup = cmp.Or(s.Startup, StartEarliest)
	s.Snapshot = cmp.Or(s.Snapshot, "diff")
	s.DiffState = cmp.Or(s.DiffState, "rows")
	s.OnRestore = cmp.Or(s.OnRestore, "refuse")
	if s.OnRestore == "rebase" {
		s.OnRestore = "continue"
	}
	s.DedupKeyFormat = cmp.Or(s.DedupKeyFormat, "unique")
	return s
}
