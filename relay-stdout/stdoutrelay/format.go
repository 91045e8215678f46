package stdoutrelay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const csvHeader = "dedup_key,subject,op,key,outbox_id,time,body\n"

// layout appends one message to a buffer.
type layout func(dst []byte, m *relay.Message) ([]byte, error)

func layoutOf(format string) layout {
	switch format {
	case "json_pretty":
		return appendPretty
	case "csv":
		return appendCSV
	case "raw":
		return appendRaw
	default:
		return appendLine
	}
}

func appendRaw(dst []byte, m *relay.Message) ([]byte, error) { return append(dst, m.Body...), nil }

// appendLine writes the body on one line. JSON has line breaks only where they
// mean nothing, so a body that has some is written without.
func appendLine(dst []byte, m *relay.Message) ([]byte, error) {
	if bytes.IndexByte(m.Body, '\n') < 0 && bytes.IndexByte(m.Body, '\r') < 0 {
		dst = append(dst, m.Body...)
		return append(dst, '\n'), nil
	}
	buf := bytes.NewBuffer(dst)
	if err := json.Compact(buf, m.Body); err != nil {
		return dst, relay.Permanent(fmt.Errorf("message %s does not fit on a line: its body has line breaks and is not JSON: %w", m.ID, err))
	}
	buf.WriteByte('\n')
	return buf.Bytes(), nil
}

func appendPretty(dst []byte, m *relay.Message) ([]byte, error) {
	buf := bytes.NewBuffer(dst)
	if err := json.Indent(buf, bytes.TrimSpace(m.Body), "", "  "); err != nil {
		return dst, relay.Permanent(fmt.Errorf("message %s cannot be indented: its body is not JSON: %w", m.ID, err))
	}
	buf.WriteByte('\n')
	return buf.Bytes(), nil
}

func appendCSV(dst []byte, m *relay.Message) ([]byte, error) {
	start := len(dst)
	dst = append(appendField(dst, m.ID), ',')
	dst = append(appendField(dst, m.Subject), ',')
	dst = append(appendField(dst, m.Op), ',')
	dst = append(appendField(dst, m.Key), ',')
	dst = append(strconv.AppendInt(dst, m.OutboxID, 10), ',')
	if !m.Time.IsZero() {
		dst = m.Time.UTC().AppendFormat(dst, time.RFC3339Nano)
	}
	dst = append(dst, ',', '"')
	body := m.Body
	if bytes.IndexByte(body, '\n') >= 0 || bytes.IndexByte(body, '\r') >= 0 {
		var compact bytes.Buffer
		if err := json.Compact(&compact, body); err != nil {
			return dst[:start], relay.Permanent(fmt.Errorf("message %s does not fit on a line: its body has line breaks and is not JSON: %w", m.ID, err))
		}
		body = compact.Bytes()
	}
	for {
		quote := bytes.IndexByte(body, '"')
		if quote < 0 {
			break
		}
		dst = append(dst, body[:quote+1]...)
		dst = append(dst, '"')
		body = body[quote+1:]
	}
	return append(append(dst, body...), '"', '\n'), nil
}

// appendField quotes where it must, and keeps a record on one line.
func appendField(dst []byte, s string) []byte {
	plain := s == "" || s[0] != ' '
	for i := 0; i < len(s) && plain; i++ {
		plain = s[i] != '"' && s[i] != ',' && s[i] >= ' ' && s[i] < utf8.RuneSelf
	}
	if plain {
		return append(dst, s...)
	}
	dst = append(dst, '"')
	for i := range len(s) {
		switch s[i] {
		case '"':
			dst = append(dst, '"', '"')
		case '\n', '\r':
			dst = append(dst, ' ')
		default:
			dst = append(dst, s[i])
		}
	}
	return append(dst, '"')
}

// intact returns how much of data, the end of a file, is whole messages.
func intact(format string, data []byte) int {
	if format == "raw" {
		return len(data) // has no marks between messages
	}
	end := bytes.LastIndexByte(data, '\n') + 1
	if format != "json_pretty" {
		return end
	}
	for end > 0 { // back to a line with which a value ends
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
