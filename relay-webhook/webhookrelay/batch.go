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
	defer s.forget()
	w := s.workers[0]
	w.limit = newLimit(ctx, s.cfg.ConfirmTimeout.D())
	defer w.limit.close()
	for i := 0; i < len(batch); {
		if s.outcome.Held(i) {
			i++
			continue
		}
		u, err := s.target(&batch[i])
		if err != nil {
			s.outcome.Fail(i, err)
			i++
			continue
		}

		end := s.join(batch, i, u)
		results, err := s.sendArray(ctx, u, batch[i:end])
		switch {
		case err == nil:
			s.settle(i, end, results)
			i = end
			continue
		case relay.IsPermanent(err) && end == i+1:
			s.outcome.Fail(i, err)
			i = end
			continue
		case i == 0:
			return err // nothing is confirmed; the engine bisects after a permanent error
		case relay.IsPermanent(err):
			// Not permanent: the array is the first of the next attempt, and the engine can bisect.
			err = fmt.Errorf("array of %d events was refused: %s", end-i, err.Error())
		}
		s.outcome.FailRest(err)
		break
	}
	return s.outcome.Err()
}

// maxKept is the largest array whose memory is kept for the next one, in bytes.
const maxKept = 4 << 20

// forget gives up the memory of an array that a large message needed.
func (s *sink) forget() {
	if cap(s.joined) > maxKept {
		s.joined = nil
	}
}

// settle records the results of an array; nil results confirm all its messages.
func (s *sink) settle(start, end int, results []error) {
	for i := start; i < end; i++ {
		if results != nil && results[i-start] != nil {
			s.outcome.Fail(i, results[i-start])
		} else {
			s.outcome.Confirm(i)
		}
	}
}

// join joins messages from start on into s.joined and returns the index after them.
func (s *sink) join(batch []relay.Message, start int, u *url.URL) (end int) {
	s.joined = append(s.joined[:0], '[')
	for end = start; end < len(batch) && end-start < s.cfg.BatchMessages; end++ {
		m := &batch[end]
		if end > start {
			if len(s.joined)+len(m.Body)+2 > int(s.cfg.BatchBytes) || s.outcome.Held(end) {
				break
			}
			if s.cfg.fixed == nil {
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
func (s *sink) sendArray(ctx context.Context, u *url.URL, messages []relay.Message) (results []error, err error) {
	w, first := s.workers[0], &messages[0]
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
	body := content{bytes: s.joined}
	if err := w.identify(ctx, h, batchID(messages), body); err != nil {
		return nil, err
	}
	answer, err := w.post(ctx, u, h, body, maxResults)
	if err != nil {
		return nil, err
	}
	return s.results(answer, messages)
}

// batchID is the same for the same messages.
func batchID(messages []relay.Message) string {
	h := sha256.New()
	for i := range messages {
		_, _ = h.Write([]byte(messages[i].Delivery()))
		_, _ = h.Write([]byte{'\n'})
	}
	return "batch_" + hex.EncodeToString(h.Sum(nil)[:16])
}

// results returns the error of each event that an answer has a result for. It is nil
// for an answer without results, which confirms all. Results that cannot be read
// confirm none, because the sink would miss a refusal.
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
		id, status, detail, err := parseResult(part)
		if err != nil {
			return nil, fmt.Errorf("result %d of the answer: %w", i, err)
		}
		at, ok := i, true
		if id != "" {
			at, ok = byID[id]
		} else if len(parts) != len(messages) {
			return nil, fmt.Errorf("the answer has %d results without ids for %d events", len(parts), len(messages))
		}
		if !ok {
			return nil, fmt.Errorf("the answer has a result for %q, which was not sent", id)
		}
		if err := s.classes.classify(status, detail, 0); err != nil {
			errs[at] = fmt.Errorf("event %s: %w", messages[at].ID, err)
		}
	}
	return errs, nil
}

// resultsOf returns the elements of results, nil where the answer has none.
func resultsOf(answer []byte) (parts []json.RawMessage, err error) {
	if !bytes.HasPrefix(bytes.TrimLeft(answer, " \t\r\n"), []byte("{")) {
		return nil, nil // not an object, for example "thanks"
	}
	if len(answer) >= maxResults {
		return nil, fmt.Errorf("the answer has more than %d bytes: return failed events only, or lower webhook_batch_messages", maxResults-1)
	}
	var parsed struct{ Results json.RawMessage }
	switch err := json.Unmarshal(answer, &parsed); {
	case err != nil && bytes.Contains(answer, []byte(`"results"`)):
		return nil, fmt.Errorf("the answer has results and is not JSON: %w", err)
	case err != nil || parsed.Results == nil:
		return nil, nil
	}
	if json.Unmarshal(parsed.Results, &parts) != nil {
		return nil, fmt.Errorf("the answer's results are not a list: %s", excerpt(parsed.Results))
	}
	return parts, nil
}

// parseResult accepts every result whose meaning is certain: ids and statuses may be
// strings or numbers, and an error any JSON.
func parseResult(part json.RawMessage) (id string, status int, detail string, err error) {
	var raw struct{ ID, Status, Error json.RawMessage }
	if json.Unmarshal(part, &raw) != nil {
		return "", 0, "", fmt.Errorf("%s is not an object", excerpt(part))
	}
	if id, err = textOf(raw.ID); err != nil {
		return "", 0, "", fmt.Errorf("id: %w", err)
	}
	detail = detailOf(raw.Error)
	text, err := textOf(raw.Status)
	switch {
	case err != nil:
		return "", 0, "", fmt.Errorf("status: %w", err)
	case text != "" && text != "0":
		if status, err = strconv.Atoi(text); err != nil || status < 100 || status > 599 {
			return "", 0, "", fmt.Errorf("status: %q is not one of HTTP", excerpt([]byte(text)))
		}
	case detail != "":
		status = http.StatusUnprocessableEntity
	default:
		status = http.StatusOK
	}
	return id, status, detail, nil
}

// textOf returns the text of a string or a number, "" for null and an absent value.
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

// detailOf returns the text of an error, "" for null and false.
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
