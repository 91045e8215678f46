package webhookrelay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// result is what an endpoint says of one event of an array; see the package
// comment.
type result struct {
	id     string // "" where results go by their order
	status int
	detail string
}

// results reads what an answer says of each event. It is nil for an answer that
// says nothing of them, which confirms all. An answer that does, and cannot be
// read, confirms none: the refusal that is in it would be lost.
func (s *sink) results(answer []byte, messages []relay.Message) ([]error, error) {
	parts, err := resultsOf(answer)
	if parts == nil || err != nil {
		return nil, err
	}
	byID := make(map[string]int, len(messages))
	for i := range messages {
		byID[messages[i].ID] = i
	}
	errs := make([]error, len(messages))
	for i, part := range parts {
		r, err := parseResult(part)
		if err != nil {
			return nil, fmt.Errorf("result %d of the answer: %w", i, err)
		}
		at, ok := i, true
		if r.id != "" {
			at, ok = byID[r.id]
		} else if len(parts) != len(messages) {
			return nil, fmt.Errorf("the answer has %d results without ids for %d events", len(parts), len(messages))
		}
		if !ok {
			return nil, fmt.Errorf("the answer has a result for %q, which was not sent", r.id)
		}
		if err := s.classes.classify(r.status, r.detail, 0); err != nil {
			errs[at] = fmt.Errorf("event %s: %w", messages[at].ID, err)
		}
	}
	return errs, nil
}

// resultsOf returns the elements of results, nil where the answer has none.
func resultsOf(answer []byte) ([]json.RawMessage, error) {
	if !bytes.HasPrefix(bytes.TrimLeft(answer, " \t\r\n"), []byte("{")) {
		return nil, nil // "thanks"
	}
	if len(answer) >= maxResults {
		return nil, fmt.Errorf("the answer has more than %d bytes, so that its results cannot be read: let it name the failed events only, or lower webhook_batch_messages", maxResults-1)
	}
	var parsed struct {
		Results json.RawMessage `json:"results"`
	}
	if err := json.Unmarshal(answer, &parsed); err != nil {
		if bytes.Contains(answer, []byte(`"results"`)) {
			return nil, fmt.Errorf("the answer has results and is not JSON: %w", err)
		}
		return nil, nil
	}
	var parts []json.RawMessage
	if parsed.Results != nil && json.Unmarshal(parsed.Results, &parts) != nil {
		return nil, fmt.Errorf("the answer's results are not a list: %s", excerpt(parsed.Results))
	}
	return parts, nil
}

// parseResult is liberal where there is no doubt what is meant: ids and statuses
// may be strings or numbers, and an error anything.
func parseResult(part json.RawMessage) (result, error) {
	var raw struct {
		ID     json.RawMessage `json:"id"`
		Status json.RawMessage `json:"status"`
		Error  json.RawMessage `json:"error"`
	}
	if json.Unmarshal(part, &raw) != nil {
		return result{}, fmt.Errorf("%s is not an object", excerpt(part))
	}
	id, err := textOf(raw.ID)
	if err != nil {
		return result{}, fmt.Errorf("id: %w", err)
	}
	r := result{id: id, detail: detailOf(raw.Error)}
	status, err := textOf(raw.Status)
	switch {
	case err != nil:
		return result{}, fmt.Errorf("status: %w", err)
	case status != "" && status != "0":
		r.status, err = strconv.Atoi(status)
		if err != nil || r.status < 100 || r.status > 599 {
			return result{}, fmt.Errorf("status: %q is not one of HTTP", excerpt([]byte(status)))
		}
	case r.detail != "":
		r.status = http.StatusUnprocessableEntity
	default:
		r.status = http.StatusOK
	}
	return r, nil
}

// textOf is the text of a string or a number, "" for null and what is not there.
func textOf(raw json.RawMessage) (text string, err error) {
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return "", nil
	case raw[0] == '"':
		return text, json.Unmarshal(raw, &text)
	case raw[0] == '-' || (raw[0] >= '0' && raw[0] <= '9'):
		return string(raw), nil
	}
	return "", errors.New("neither a string nor a number")
}

// detailOf is what an error says, "" for null and false.
func detailOf(raw json.RawMessage) string {
	if string(raw) == "false" {
		return ""
	}
	text, err := textOf(raw)
	if err != nil {
		text = string(raw)
	}
	return excerpt([]byte(text))
}
