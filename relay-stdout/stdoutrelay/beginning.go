package stdoutrelay

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// beginning is how the file that the pipeline began last begins: the checkpoint behind the
// lines that were received first. The cursor's far_ends have it before these lines are
// received. Without it a file could be cut unnoticed:
//
//  1. A relay delivers the first lines, and is killed before a checkpoint is stored.
//  2. The file is cut, and new lines are written.
//  3. The next relay begins at byte 0, where nothing lies before the position. The lines that
//     the first relay had not read are lost. New lines have the ids of those delivered.
type beginning struct {
	checkpoint
	met   bool                       // the file that is open has it, and the cursor too
	known map[string]json.RawMessage // the cursor's far_ends
}

// beginningName is the beginning's name in far_ends.
const beginningName = "file"

// recall reads the beginning. If the checkpoint is of an earlier file, or there is none, the
// position is at the start of the file that has this beginning.
func (s *fileSource) recall() error {
	b := &s.beginning
	b.known = make(map[string]json.RawMessage)
	if s.env.FarEnds == "" {
		return nil
	}
	err := json.Unmarshal([]byte(s.env.FarEnds), &b.known)
	if state := b.known[beginningName]; err == nil && state != nil {
		err = json.Unmarshal(state, &b.checkpoint)
	}
	if err != nil {
		return relay.Fatal(fmt.Errorf("read far_ends of the pipeline's cursor: %w", err))
	}
	if b.Inode != 0 && (s.at.Inode == 0 || s.at.Generation < b.Generation) {
		s.at = checkpoint{position: position{Inode: b.Inode}, Path: b.Path, Generation: b.Generation}
	}
	return nil
}

// isIn reports whether f is the position's file, with the lines before the position and with
// the beginning.
func (s *fileSource) isIn(f *os.File, info os.FileInfo) bool {
	return s.at.isIn(f, info) && (!s.knowsBeginning() || s.beginning.isIn(f, info))
}

// knowsBeginning reports whether the beginning is that of the position's file.
func (s *fileSource) knowsBeginning() bool {
	return s.beginning.Inode != 0 && s.beginning.Inode == s.at.Inode && s.beginning.Generation == s.at.Generation
}

// meet returns nil once the file that is open has the known beginning, or the lines that are
// held are stored as its beginning. It looks after they were read: a file that was cut
// before that read does not have the beginning.
func (s *fileSource) meet(ctx context.Context) error {
	b := &s.beginning
	switch {
	case b.met:
		return nil
	case s.knowsBeginning():
		info, err := s.f.Stat()
		if err != nil {
			return fmt.Errorf("read %s: %w", s.cfg.Path, err)
		}
		if !b.isIn(s.f, info) {
			return s.changed("was cut or overwritten")
		}
	case s.env.KeepFarEnds != nil:
		one, err := json.Marshal(s.at)
		if err != nil {
			return err
		}
		b.known[beginningName] = one
		all, err := json.Marshal(b.known)
		if err != nil {
			return err
		}
		if err := s.env.KeepFarEnds(ctx, string(all)); err != nil {
			return fmt.Errorf("remember the beginning of %s: %w", s.cfg.Path, err)
		}
		b.checkpoint = s.at
	}
	b.met = true
	return nil
}
