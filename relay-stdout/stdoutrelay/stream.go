package stdoutrelay

import (
	"context"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// stream is standard output, a pipe or a device: it cannot be read back.
type stream struct {
	writer
	outs  *outputs
	path  string
	out   *output // nil before the first message
	began bool
	cut   string // id of the message whose rest the output completes
}

var (
	_ relay.Pinger    = (*stream)(nil)
	_ relay.Guarantor = (*stream)(nil)
)

// Publish implements [relay.Sink]. A write that ends in the middle of a message
// fails that message. The next call completes it and counts it as written.
func (s *stream) Publish(ctx context.Context, batch []relay.Message) error {
	if err := s.outcome.Begin(ctx, batch); err != nil {
		return err
	}
	if s.out == nil {
		var err error
		if s.out, err = s.outs.acquire(s.path); err != nil {
			return err
		}
	}
	if err := s.out.begin(ctx); err != nil {
		return err
	}
	defer s.out.end()

	defer s.forget()
	s.render(batch, !s.began)
	from := 0
	if s.cut != "" && batch[0].ID == s.cut { // begin has completed it
		from = s.ends[0]
		s.outcome.Confirm(0)
	}
	s.cut = ""
	n, err := s.out.write(ctx, s.buf[from:])
	s.began = s.began || n > 0
	n += from
	cut := false
	for i, end := range s.ends {
		switch begin := s.begin(i); {
		case s.outcome.Failed(i):
		case end <= n:
			s.outcome.Confirm(i)
		default:
			s.outcome.Fail(i, err)
			if begin < n && !cut {
				s.out.rest = append(s.out.rest[:0], s.buf[n:end]...)
				s.cut, cut = strings.Clone(batch[i].ID), true
			}
		}
	}
	return s.outcome.Err()
}

// begin returns where message i begins in buf; the header belongs to the first.
func (w *writer) begin(i int) int {
	if i == 0 {
		return 0
	}
	return w.ends[i-1]
}

// Close implements [relay.Sink].
func (s *stream) Close() error {
	s.outcome.Close()
	if s.out == nil {
		return nil
	}
	out := s.out
	s.out = nil
	return s.outs.release(out)
}

// Ping implements [relay.Pinger].
func (s *stream) Ping(context.Context) error {
	_, err := look(s.path)
	return err
}

// Guarantee implements [relay.Guarantor].
func (s *stream) Guarantee() relay.Guarantee {
	return relay.Guarantee{
		Delivery: "at least once",
		Dedup:    "the dedup_key of the envelope lets the reader drop duplicates",
		Order:    "total",
		Weakest:  "what was written last before a crash is written again; a reader that goes away",
	}
}
