package table

import "cmp"

// Settings are the configuration keys of a forward pipeline that concern its outbox.
// [Settings.WithDefaults] makes the zero value valid, and it fits every outbox that the
// extension or the relay created.
type Settings struct {
	Strategy      string `json:"outbox_strategy" relay:"enum=auto|window|fence" doc:"How the outbox is read: by snapshot windows, which need a column of type xid8, or by the gap fence. auto takes windows where the column is there."`
	IDColumn      string `json:"id_column" doc:"Column that numbers the rows; default id, else the primary key's only column."`
	XidColumn     string `json:"xid_column" doc:"Column of type xid8 that defaults to pg_current_xact_id(); default: the one there is."`
	PayloadColumn string `json:"payload_column" doc:"Column that holds the event; default payload."`
	OpColumn      string `json:"op_column" doc:"Column that says insert, update or delete; default: none, every row is an insert. Tables of one's own only."`
	KeyColumn     string `json:"key_column" doc:"Column whose value is the ordering key; default: none. Tables of one's own only."`
	CreatedColumn string `json:"created_at_column" doc:"Column with the time at which the row was written; default created_at where there is one."`
	HeadersColumn string `json:"headers_column" doc:"Column of type jsonb with an object whose members become headers; default: none. Tables of one's own only."`
	SequenceCache string `json:"sequence_cache" relay:"enum=refuse|accept" doc:"Whether windows may read an outbox whose sequence hands out ids in bulk (CACHE above 1). Nothing is lost then, but rows of a key keep their order only if one session at a time writes the key; and progress, on which retention waits, is known only as sessions end."`
	OnRestore     string `json:"on_restore" relay:"enum=refuse|rebase" doc:"What to do when the database turns out to be another than the one the checkpoint was made in: refuse to start, or go on from the highest id known to be delivered, which can repeat rows."`
}

// DefaultSettings returns the settings with every default filled in.
func DefaultSettings() Settings { return Settings{}.WithDefaults() }

// WithDefaults returns s with defaults in place of empty values.
func (s Settings) WithDefaults() Settings {
	s.Strategy = cmp.Or(s.Strategy, "auto")
	s.SequenceCache = cmp.Or(s.SequenceCache, "refuse")
	s.OnRestore = cmp.Or(s.OnRestore, "refuse")
	return s
}
