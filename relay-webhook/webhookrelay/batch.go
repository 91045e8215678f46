package webhookrelay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// publishArrays sends one request after the other, each with a JSON array of
// consecutive messages.
func (s *sink) publishArrays(ctx context.Context, batch []relay.Message) error {
	w := s.workers[0]
	clear(s.batchBad)
	var failed relay.BatchError
	for i := 0; i < len(batch); {
		if s.batchBad[batch[i].Key] {
			failed.Fail(i, relay.ErrHeldBack)
			i++
			continue
		}
		u, err := s.target(&batch[i])
		if err != nil {
			failed.Fail(i, err)
			s.bad(batch[i].Key)
			i++
			continue
		}
		end := s.chunk(batch, i, u)
		results, err := s.sendArray(ctx, w, u, batch[i:end])
		switch {
		case err == nil:
			for j, itemErr := range results {
				if itemErr != nil {
					failed.Fail(i+j, itemErr)
					s.bad(batch[i+j].Key)
				}
			}
			i = end
			continue
		case relay.IsPermanent(err) && end == i+1:
			failed.Fail(i, err)
			s.bad(batch[i].Key)
			i = end
			continue
		case i == 0:
			return err // nothing is confirmed; a permanent one is for the engine to bisect
		case relay.IsPermanent(err):
			// Next time this array is the first, and the engine can bisect.
			err = fmt.Errorf("array of %d events was refused: %s", end-i, err) //nolint:errorlint // must not be permanent
		}
		for ; i < len(batch); i++ {
			failed.Fail(i, err)
		}
	}
	if len(failed.Failed) > 0 {
		failed.HoldBack(batch)
	}
	return failed.Err()
}

func (s *sink) bad(key string) {
	if key != "" {
		s.batchBad[key] = true
	}
}

// chunk joins messages from start on into s.joined and returns where it ends.
func (s *sink) chunk(batch []relay.Message, start int, u *url.URL) (end int) {
	s.joined = append(s.joined[:0], '[')
	for end = start; end < len(batch) && end-start < s.cfg.BatchMessages; end++ {
		m := &batch[end]
		if end > start {
			if len(s.joined)+len(m.Body)+2 > int(s.cfg.BatchBytes) || s.batchBad[m.Key] {
				break
			}
			if s.fixed == nil {
				if other, err := s.target(m); err != nil || other.String() != u.String() {
					break
				}
			}
			s.joined = append(s.joined, ',')
		}
		s.joined = append(s.joined, m.Body...)
	}
	s.joined = append(s.joined, ']')
	return end
}

// sendArray sends the joined messages. results is nil when all are confirmed,
// else it has one entry for each.
func (s *sink) sendArray(ctx context.Context, w *worker, u *url.URL, messages []relay.Message) (results []error, err error) {
	first := &messages[0]
	h := newHead()
	for _, f := range first.Headers {
		if err := h.add(f.Name, f.Value); err != nil {
			return nil, err
		}
	}
	contentType := "application/json"
	if strings.HasPrefix(first.ContentType, "application/cloudevents+json") {
		contentType = "application/cloudevents-batch+json"
	}
	h.set(relay.HeaderContentType, contentType)
	h.set(headerBatch, strconv.Itoa(len(messages)))
	if err := w.addConfigured(h, first); err != nil {
		return nil, err
	}
	if err := w.identify(h, batchID(messages), s.joined); err != nil {
		return nil, err
	}
	answer, err := w.post(ctx, u, h, s.joined, maxResults)
	if err != nil {
		return nil, err
	}
	return s.results(answer, messages)
}

// batchID is the same for the same messages.
func batchID(messages []relay.Message) string {
	h := sha256.New()
	for i := range messages {
		_, _ = h.Write([]byte(messages[i].ID))
		_, _ = h.Write([]byte{'\n'})
	}
	return "batch_" + hex.EncodeToString(h.Sum(nil)[:16])
}

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
