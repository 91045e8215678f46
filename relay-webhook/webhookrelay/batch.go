package webhookrelay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// publishArrays sends one request after the other, each with a JSON array of
// consecutive messages.
func (s *sink) publishArrays(ctx context.Context, batch []relay.Message) error {
	w := s.workers[0]
	defer w.release()
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
	w.reset()
	for _, h := range first.Headers {
		if err := w.add(h.Name, h.Value); err != nil {
			return nil, err
		}
	}
	contentType := "application/json"
	if strings.HasPrefix(first.ContentType, "application/cloudevents+json") {
		contentType = "application/cloudevents-batch+json"
	}
	w.set(relay.HeaderContentType, contentType)
	w.set(headerBatch, strconv.Itoa(len(messages)))
	if err := w.addOwn(first); err != nil {
		return nil, err
	}
	if err := w.identify(batchID(messages), s.joined); err != nil {
		return nil, err
	}
	answer, err := w.post(ctx, u, s.joined, maxResults)
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
