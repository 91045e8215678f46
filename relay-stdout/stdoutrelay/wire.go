package stdoutrelay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const csvHeader = "dedup_key,subject,op,key,outbox_id,time,body\n"

// layout appends one message to a buffer.
type layout func(dst []byte, m *relay.Message) ([]byte, error)

var layouts = map[string]layout{"jsonl": appendLine, "json_pretty": appendPretty, "csv": appendCSV, "raw": appendRaw}

func appendRaw(dst []byte, m *relay.Message) ([]byte, error) { return append(dst, m.Body...), nil }

// appendLine writes the body on one line.
func appendLine(dst []byte, m *relay.Message) ([]byte, error) {
	body, err := oneLine(m)
	if err != nil {
		return dst, err
	}
	return append(append(dst, body...), '\n'), nil
}

// oneLine returns the body without line breaks. In JSON they mean nothing.
func oneLine(m *relay.Message) ([]byte, error) {
	// IndexByte is vectorised; ContainsAny took a sixth of a drain.
	if bytes.IndexByte(m.Body, '\n') < 0 && bytes.IndexByte(m.Body, '\r') < 0 {
		return m.Body, nil
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, m.Body); err != nil {
		err = fmt.Errorf("message %s does not fit on a line: its body has line breaks and is not JSON: %w", m.ID, err)
		return nil, refusals.Classify(err, notLine, false)
	}
	return compact.Bytes(), nil
}

func appendPretty(dst []byte, m *relay.Message) ([]byte, error) {
	buf := bytes.NewBuffer(dst)
	if err := json.Indent(buf, bytes.TrimSpace(m.Body), "", "  "); err != nil {
		return dst, refusals.Classify(fmt.Errorf("message %s cannot be indented: its body is not JSON: %w", m.ID, err), notLine, false)
	}
	buf.WriteByte('\n')
	return buf.Bytes(), nil
}

func appendCSV(dst []byte, m *relay.Message) ([]byte, error) {
	body, err := oneLine(m)
	if err != nil {
		return dst, err
	}
	for _, field := range []string{m.ID, m.Subject, m.Op, m.Key} {
		dst = append(appendField(dst, field), ',')
	}
	dst = append(strconv.AppendInt(dst, m.OutboxID, 10), ',')
	if !m.Time.IsZero() {
		dst = m.Time.UTC().AppendFormat(dst, time.RFC3339Nano)
	}
	dst = append(dst, ',', '"')
	dst = append(dst, bytes.ReplaceAll(body, []byte{'"'}, []byte(`""`))...)
	return append(dst, '"', '\n'), nil
}

var csvEscaper = strings.NewReplacer(`"`, `""`, "\n", " ", "\r", " ")

// appendField quotes s if necessary, and keeps a record on one line.
func appendField(dst []byte, s string) []byte {
	special := func(r rune) bool { return r == '"' || r == ',' || r < ' ' || r >= utf8.RuneSelf }
	if !strings.HasPrefix(s, " ") && !strings.ContainsFunc(s, special) {
		return append(dst, s...)
	}
	dst = append(append(dst, '"'), csvEscaper.Replace(s)...)
	return append(dst, '"')
}

// intact returns how much of data, the end of a file of format json_pretty, is whole
// messages.
func intact(data []byte) int {
	end := bytes.LastIndexByte(data, '\n') + 1
	for end > 0 { // back to a line that ends a value
		start := bytes.LastIndexByte(data[:end-1], '\n') + 1
		switch line := data[start : end-1]; {
		case len(line) == 0, line[0] == ' ', string(line) == "{", string(line) == "[":
			end = start
		default:
			return end
		}
	}
	return 0
}
