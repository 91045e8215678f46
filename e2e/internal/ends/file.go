package ends

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// fileEnd is a file of JSON lines.
type fileEnd struct {
	path  string
	first string // the path at first
	lives int
}

func newFile(_ context.Context, env Env) (End, error) {
	// Anyone may write here: an image runs as a user of its own.
	if err := os.Chmod(env.Dir, 0o777); err != nil {
		return nil, err
	}
	path := filepath.Join(env.Dir, env.Name+".jsonl")
	return &fileEnd{path: path, first: path}, nil
}

func (e *fileEnd) Sink() map[string]any { return map[string]any{"path": e.path, "format": "jsonl"} }

func (e *fileEnd) Source() map[string]any { return map[string]any{"path": e.path, "follow": true} }

func (e *fileEnd) Arrived(context.Context) (records []Record, err error) {
	content, err := os.ReadFile(e.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(content) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // being written
		}
		var envelope struct {
			DedupKey string `json:"dedup_key"`
		}
		if err := json.Unmarshal(line, &envelope); err != nil {
			return nil, err
		}
		records = append(records, Record{ID: envelope.DedupKey, Body: line})
	}
	return records, nil
}

func (e *fileEnd) Produce(_ context.Context, records []Record) (err error) {
	var lines []byte
	for _, r := range records {
		lines = append(append(lines, r.Body...), '\n')
	}
	f, err := os.OpenFile(e.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return err
	}
	_, err = f.Write(lines)
	return errors.Join(err, f.Close())
}

func (*fileEnd) Close() {}
