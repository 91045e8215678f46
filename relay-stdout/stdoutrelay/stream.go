package stdoutrelay

import (
	"context"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// stream is standard output, a pipe or a device: it cannot be read back.
type stream struct {
	writer
	outs   *outputs
	out    *output
	began  bool
	cut    string // id of the message whose rest the output completes
	closed bool
}

var (
	_ relay.Pinger    = (*stream)(nil)
	_ relay.Guarantor = (*stream)(nil)
)

// Publish implements [relay.Sink]. A write that ends in the middle of a message
// fails that message. The next call completes it and counts it as written.
func (s *stream) Publish(ctx context.Context, batch []relay.Message) error {
	if s.closed {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.out.begin(ctx); err != nil {
		return err
	}
	defer s.out.end()

	skip := 0
	if s.cut != "" && batch[0].ID == s.cut {
		skip = 1
	}
	s.cut = ""
	bad := s.render(batch, skip, !s.began)
	n, err := s.out.write(ctx, s.buf)
	s.began = s.began || n > 0
	if err == nil {
		return bad.Err()
	}

	begin, cut := 0, false
	for i, end := range s.ends {
		if end <= n {
			begin = max(begin, end)
			continue
		}
		bad.Fail(i, err)
		if begin < n && !cut {
			s.out.rest = append(s.out.rest[:0], s.buf[n:end]...)
			s.cut, cut = strings.Clone(batch[i].ID), true
		}
	}
	return bad.Err()
}

// Close implements [relay.Sink].
func (s *stream) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	return s.outs.release(s.out)
}

// Ping implements [relay.Pinger].
func (s *stream) Ping(context.Context) error {
	_, err := s.out.f.Stat()
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
