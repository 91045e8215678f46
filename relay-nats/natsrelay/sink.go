package natsrelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

var (
	errClosed  = errors.New("the sink is closed")
	errNotSent = errors.New("not sent: an earlier message of the batch failed")
)

// maxBytesInFlight keeps below the server's limit on what a stream has yet to
// store, behind which it refuses messages at random.
const maxBytesInFlight = 32 << 20

// accountWithin is how long the account's limits are waited for. Where the question
// gets lost, each connection is held up by as much.
const accountWithin = 2 * time.Second

type sink struct {
	cfg    sinkConfig
	env    relay.Env
	closed bool

	link   *link // nil until connected
	win    *window
	broken bool // the link must not be used again

	stream  string
	info    jetstream.StreamConfig
	created time.Time
	perKey  bool            // one message of a key in flight
	known   map[string]bool // subjects that the stream takes

	enc     encoder
	lastIn  map[string]int  // by key, the last message sent; only where perKey
	blocked map[string]bool // keys with a refused message in this batch
	lastSeq uint64          // everything confirmed lies at or before it
	dups    int

	// doubt holds the IDs that were sent and not confirmed, since doubtAt.
	doubt   map[string]bool
	doubtAt time.Time
	arrived map[string]bool // of those, what turned out to be stored
}

func newSink(ctx context.Context, env relay.Env, raw json.RawMessage) (*sink, error) {
	s := &sink{
		cfg: sinkDefaults(), env: env,
		known: make(map[string]bool), lastIn: make(map[string]int), blocked: make(map[string]bool),
		doubt: make(map[string]bool), arrived: make(map[string]bool),
	}
	if err := relaycfg.Decode(raw, &s.cfg); err != nil {
		return nil, err
	}
	if s.cfg.Subject.IsZero() {
		s.cfg.Subject = env.Subject
	}
	if err := s.connect(ctx, ""); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// connect makes sure that there is a connection, and a stream behind it.
// subject helps to find the stream where the configuration names none.
func (s *sink) connect(ctx context.Context, subject string) error {
	if s.closed {
		return errClosed
	}
	if s.link != nil && (s.broken || !s.link.alive()) {
		s.disconnect()
	}
	if s.link == nil {
		l, err := dial(ctx, &s.cfg.serverConfig, "pgtrickle-relay "+s.env.Pipeline)
		if err != nil {
			return err
		}
		s.link = l
	}
	if s.win != nil {
		return nil
	}
	if s.cfg.Stream == "" && !s.cfg.Subject.IsZero() {
		subject = wildcards(s.cfg.Subject.String())
	}
	if s.cfg.Stream == "" && subject == "" {
		return nil // the first message will tell
	}
	if err := s.openStream(ctx, subject); err != nil {
		return err
	}
	win, err := newWindow(s.link, s.stream, s.cfg.AckTimeout.D())
	if err != nil {
		return err
	}
	if s.info.AllowBatchPublish && s.cfg.Pipelining != "per_key" {
		win.fast = newFast(win.prefix, s.cfg.MaxInFlight)
	}
	win.lastSeq = s.lastSeq
	s.win = win
	return nil
}

func (s *sink) disconnect() {
	if s.link != nil {
		s.link.close()
	}
	s.link, s.win, s.broken = nil, nil, false
}

func (s *sink) openStream(ctx context.Context, subject string) error {
	var create *jetstream.StreamConfig
	if s.cfg.CreateStream {
		create = &jetstream.StreamConfig{
			Name: s.cfg.Stream, Subjects: s.cfg.subjects(), Replicas: s.cfg.Replicas,
			Duplicates: s.cfg.DedupWindow.D(), Storage: jetstream.FileStorage,
			AllowBatchPublish: takesFast(s.link.nc.ConnectedServerVersion()),
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AckTimeout.D())
	defer cancel()
	stream, err := openStream(ctx, s.link, s.cfg.Stream, subject, create)
	if err != nil {
		return err
	}
	info := stream.CachedInfo()
	s.stream, s.info = info.Config.Name, info.Config
	if s.info.NoAck {
		return relay.Fatal(fmt.Errorf("stream %q has no_ack set, so nothing published to it can be confirmed: unset it", s.stream))
	}
	switch {
	case s.created.IsZero():
		s.lastSeq = info.State.LastSeq
	case !s.created.Equal(info.Created):
		s.lastSeq = 0 // deleted and made anew
	}
	s.created = info.Created
	s.perKey = s.cfg.Pipelining == "per_key" || (s.cfg.Pipelining == "auto" && s.mayPassOver(ctx, info))
	clear(s.known)
	return nil
}

// mayPassOver reports whether the stream could refuse or lose one message and
// store the next, which is out of order once the first is sent again: when the
// stream or its account refuses what is beyond its limits, and when messages pass
// between servers on their way to it.
func (s *sink) mayPassOver(ctx context.Context, info *jetstream.StreamInfo) bool {
	limited := info.Config.MaxMsgs > 0 || info.Config.MaxBytes > 0 || info.Config.DiscardNewPerSubject
	if info.Config.Discard == jetstream.DiscardNew && limited {
		return true
	}
	if info.Config.Replicas > 1 {
		return true
	}
	if info.Cluster != nil && info.Cluster.Leader != "" && info.Cluster.Leader != s.link.nc.ConnectedServerName() {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, accountWithin)
	defer cancel()
	account, err := s.link.accountInfo(ctx)
	switch {
	case errors.Is(err, nats.ErrPermissionViolation),
		errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		// This user may not know, nobody answers such questions, or the stream is
		// another account's. Most accounts have no limit, so it is taken for one of
		// these.
		return false
	case err != nil:
		return true // until the next connection, which may know better
	}
	return accountLimited(account, &info.Config)
}

// accountLimited reports whether an account has a limit on what streams like
// that one store. The server then refuses a large message and takes a small one.
func accountLimited(account *jetstream.AccountInfo, stream *jetstream.StreamConfig) bool {
	limits := account.Limits
	if len(account.Tiers) > 0 {
		limits = account.Tiers[fmt.Sprintf("R%d", max(1, stream.Replicas))].Limits
	}
	if stream.Storage == jetstream.MemoryStorage {
		return limits.MaxMemory > 0
	}
	return limits.MaxStore > 0 // -1 is no limit, and with 0 there is nothing that could pass
}

// Publish implements [relay.Sink].
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.connect(ctx, batch[0].Subject); err != nil {
		return err
	}
	if err := s.resolveDoubt(ctx); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, s.link.cut)() // a write can be stuck in the network
	s.win.begin(len(batch))
	fast := len(s.arrived) == 0 && s.win.fast.fits(batch)
	send := s.send
	if fast {
		send = s.sendFast
	}
	stopped := send(ctx, batch)
	if stopped == nil || errors.Is(stopped, errNotSent) {
		if err := s.win.wait(ctx, s.win.sent); err != nil {
			stopped = err
		}
	}
	if fast {
		if err := s.win.stop(); err != nil && (stopped == nil || errors.Is(stopped, errNotSent)) {
			stopped = err
		}
	}
	return s.result(ctx, batch, stopped)
}

// send publishes batch and returns why it stopped before its end, if it did.
func (s *sink) send(ctx context.Context, batch []relay.Message) error {
	w, perKey, bytes := s.win, s.perKey, 0
	clear(s.lastIn)
	clear(s.blocked)
	for i := range batch {
		m := &batch[i]
		if len(s.arrived) > 0 && s.arrived[m.ID] {
			delete(s.arrived, m.ID)
			w.found(i)
			continue
		}
		if len(s.blocked) > 0 && s.blocked[m.Key] {
			w.refuse(i, relay.ErrHeldBack)
			continue
		}
		msg, size, demanding := s.enc.encode(m, w.replies[i])
		if err := s.check(ctx, m, size); err != nil {
			if s.refuse(i, m, err); relay.IsFatal(err) {
				return errNotSent
			}
			continue
		}
		if demanding && !perKey {
			if err := w.wait(ctx, w.sent); err != nil {
				return err
			}
			perKey = true
		}
		if bytes += size; bytes > maxBytesInFlight {
			if err := w.wait(ctx, w.sent); err != nil {
				return err
			}
			bytes = size
		}
		if err := s.room(ctx, m.Key, i, perKey); err != nil {
			return err
		}
		if w.failed() {
			return errNotSent
		}
		w.sending(i)
		switch err := s.link.nc.PublishMsg(msg); {
		case err == nil:
		case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadHeaderMsg), errors.Is(err, nats.ErrBadSubject):
			s.refuse(i, m, relay.Permanent(fmt.Errorf("publish message %s: %w", m.ID, err)))
		default:
			return classifyDial(fmt.Errorf("publish message %s: %w", m.ID, err))
		}
	}
	return nil
}

// room waits until message i may be sent.
func (s *sink) room(ctx context.Context, key string, i int, perKey bool) error {
	if s.win.outstanding() >= s.cfg.MaxInFlight {
		if err := s.win.wait(ctx, s.win.sent-s.cfg.MaxInFlight/2); err != nil {
			return err
		}
	}
	if !perKey || key == "" {
		return nil
	}
	if last, ok := s.lastIn[key]; ok {
		if err := s.win.waitFor(ctx, last); err != nil {
			return err
		}
	}
	s.lastIn[key] = i
	return nil
}

// refuse settles message i as failed and holds back what follows in its key.
func (s *sink) refuse(i int, m *relay.Message, err error) {
	s.win.refuse(i, err)
	if m.Key != "" {
		s.blocked[m.Key] = true
	}
}

// check finds what the server or the client would refuse of m, which was encoded
// last, before anything behind it is sent.
func (s *sink) check(ctx context.Context, m *relay.Message, size int) error {
	if limit := s.link.nc.MaxPayload(); int64(size) > limit {
		return relay.Permanent(fmt.Errorf("message %s is %d bytes with its headers; the server takes %d (max_payload)", m.ID, size, limit))
	}
	if limit := int(s.info.MaxMsgSize); limit > 0 && size > limit {
		return relay.Permanent(fmt.Errorf("message %s is %d bytes with its headers; stream %q takes %d (max_msg_size)", m.ID, size, s.stream, limit))
	}
	if s.enc.unsendable {
		return relay.Permanent(fmt.Errorf("message %s: header name %q cannot be sent: NATS takes printable ASCII without spaces and separators", m.ID, s.enc.badName))
	}
	if s.known[m.Subject] {
		return nil
	}
	if !validSubject(m.Subject) {
		return relay.Permanent(fmt.Errorf("message %s: %q is not a subject that can be published to", m.ID, m.Subject))
	}
	if !s.takes(m.Subject) {
		if err := s.openStream(ctx, m.Subject); err != nil { // it may have changed
			return err
		}
		if !s.takes(m.Subject) {
			return relay.Fatal(fmt.Errorf("stream %q does not take subject %q, only %s: add it to the stream", s.stream, m.Subject, strings.Join(s.info.Subjects, ", ")))
		}
	}
	if len(s.known) > 10_000 {
		clear(s.known)
	}
	s.known[strings.Clone(m.Subject)] = true
	return nil
}

func (s *sink) takes(subject string) bool {
	for _, pattern := range s.info.Subjects {
		if matches(pattern, subject) {
			return true
		}
	}
	return false
}

// result settles the batch: what is known of each message, and whether the
// connection can be trusted with the next batch.
func (s *sink) result(ctx context.Context, batch []relay.Message, stopped error) error {
	w := s.win
	w.mu.Lock()
	defer w.mu.Unlock()
	s.lastSeq = max(s.lastSeq, w.lastSeq)
	s.dups += w.dups
	w.dups = 0
	if w.sent > w.done || (w.fast != nil && w.fast.ended) {
		s.broken = true // late answers must not be taken for the next batch's
	}
	if stopped == nil && len(w.errs) == 0 {
		clear(s.doubt)
		return nil
	}
	var failed relay.BatchError
	var silence error // why no stream answered, asked for once
	confirmedAny := false
	for i := range batch {
		switch w.state[i] {
		case confirmed:
			confirmedAny = true
		case refused:
			err := w.errs[i]
			if errors.Is(err, errNoResponders) {
				if silence == nil {
					silence = s.explainSilence(ctx, batch[i].Subject)
				}
				err = silence
			}
			failed.Fail(i, err)
		case inFlight:
			if len(s.doubt) == 0 {
				s.doubtAt = time.Now()
			}
			s.doubt[strings.Clone(batch[i].ID)] = true
			failed.Fail(i, stopped)
		case unsent:
			if stopped == nil { // behind one that was refused
				failed.Fail(i, relay.ErrHeldBack)
			} else {
				failed.Fail(i, stopped)
			}
		}
	}
	if len(failed.Failed) == 0 {
		return nil
	}
	if !confirmedAny && stopped != nil && len(w.errs) == 0 {
		return stopped
	}
	failed.HoldBack(batch)
	return failed.Err()
}

// explainSilence says why no stream answered to subject.
func (s *sink) explainSilence(ctx context.Context, subject string) error {
	s.broken = true // look for the stream again before the next batch
	if err := s.openStream(ctx, subject); err != nil {
		return err
	}
	if !s.takes(subject) {
		return relay.Fatal(fmt.Errorf("stream %q does not take subject %q any more, only %s", s.stream, subject, strings.Join(s.info.Subjects, ", ")))
	}
	return fmt.Errorf("publish to %q: stream %q is not available for the moment: %w", subject, s.stream, errNoResponders)
}

// Close implements [relay.Sink].
func (s *sink) Close() error {
	s.disconnect()
	s.closed = true
	return nil
}

// TakeDuplicates implements [relay.Duplicates].
func (s *sink) TakeDuplicates() int {
	n := s.dups
	s.dups = 0
	return n
}

// Destination implements [relay.Router].
func (s *sink) Destination(m *relay.Message) (string, error) {
	if !validSubject(m.Subject) {
		return "", relay.Permanent(fmt.Errorf("message %s: %q is not a subject that can be published to", m.ID, m.Subject))
	}
	return m.Subject, nil
}

// Ping implements [relay.Pinger].
func (s *sink) Ping(ctx context.Context) error {
	if err := s.connect(ctx, ""); err != nil {
		return err
	}
	if s.cfg.Stream == "" && s.stream == "" {
		return s.link.nc.FlushWithContext(ctx)
	}
	_, err := s.link.js.Stream(ctx, s.stream)
	if err != nil {
		return s.link.apiError(ctx, fmt.Errorf("look up stream %q: %w", s.stream, err))
	}
	return nil
}

// Guarantee implements [relay.Guarantor].
func (s *sink) Guarantee() relay.Guarantee {
	g := Backend().SinkGuarantee
	if s.stream == "" {
		return g
	}
	g.Dedup = fmt.Sprintf("Nats-Msg-Id for %s (duplicate window of stream %q)", s.info.Duplicates, s.stream)
	if s.info.Retention != jetstream.WorkQueuePolicy {
		g.Dedup += "; beyond it by reading the stream's tail"
	}
	switch {
	case s.info.Storage == jetstream.MemoryStorage:
		g.Weakest = fmt.Sprintf("stream %q is kept in memory: it is empty after its server restarts", s.stream)
	case s.info.Retention == jetstream.WorkQueuePolicy:
		g.Weakest = "a work queue cannot be read back, so only the duplicate window counts"
	case s.info.Retention != jetstream.LimitsPolicy:
		g.Weakest = "the stream's tail cannot be read back once consumers have taken messages off it, so only the duplicate window counts"
	case s.cfg.Pipelining == "full" && !s.info.AllowBatchPublish:
		g.Weakest = "pipelining is full: a message that the stream refuses can be overtaken by one behind it in its key"
	}
	return g
}
