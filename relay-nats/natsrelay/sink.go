package natsrelay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	// maxBytesInFlight stays below the server's limit on what a stream has yet to
	// store. Above that limit the server refuses messages at random.
	maxBytesInFlight = 32 << 20
	// accountTimeout bounds the question for the account's limits. A lost question
	// delays each connection by as much.
	accountTimeout = 2 * time.Second
	maxKnown       = 10_000 // subjects in sink.known
	// maxControlLine is the server's default of max_control_line, which INFO does not
	// state. A longer line ends the connection.
	maxControlLine = 4096
	controlLineFix = 32 // what the line holds beside its subjects
	// limitHolds is how long the sink trusts the length that it learnt from a server.
	limitHolds = 10 * time.Second
)

// sink publishes each message with a reply subject of its own and follows the
// stream's confirmations in a window.
type sink struct {
	cfg    sinkConfig
	env    relay.Env
	closed bool

	conn   *conn   // nil until connected
	win    *window // nil until the stream is known
	broken bool    // conn must not be used for another batch

	stream  string
	info    jetstream.StreamConfig
	created time.Time
	perKey  bool            // one message of a key in flight at a time
	known   map[string]bool // subjects that the stream stores
	fresh   bool            // the last message checked is the first with a subject of a row
	learnt  time.Time       // when lineLimit was found
	asked   time.Time       // when the limits were looked up last to refuse a message

	enc       encoder
	lastIn    map[string]int // by key, the last message sent; with perKey only
	lineLimit int            // bytes of a subject
	lastSeq   uint64         // everything confirmed lies at or before it
	dups      int
	dupID     string // of one of them
}

func newSink(ctx context.Context, env relay.Env, cfg sinkConfig) (*sink, error) {
	s := &sink{cfg: cfg, env: env, known: make(map[string]bool), lastIn: make(map[string]int)}
	if s.cfg.Subject.IsZero() {
		s.cfg.Subject = env.Subject
	}
	if err := s.connect(ctx, ""); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// connect makes sure that there is a connection, and a stream behind it. subject
// finds the stream if the configuration names none.
func (s *sink) connect(ctx context.Context, subject string) error {
	if s.closed {
		return relay.ErrClosed
	}
	if s.conn != nil && (s.broken || !s.conn.alive()) {
		s.disconnect()
	}
	if s.conn == nil {
		c, err := dial(ctx, s.env, &s.cfg.connConfig, "")
		if err != nil {
			return err
		}
		s.conn = c
	}
	if s.win != nil {
		return nil
	}

	if s.cfg.Stream == "" && !s.cfg.Subject.IsZero() {
		subject = wildcards(s.cfg.Subject)
	}
	if s.cfg.Stream == "" && subject == "" {
		return nil // the first message's subject finds the stream
	}
	if err := s.openStream(ctx, subject); err != nil {
		return err
	}
	win, err := newWindow(s.conn, s.stream, s.cfg.ConfirmTimeout.D())
	s.win = win
	if err == nil && s.ofRow() {
		s.conn.denyTo(win.deny)
	}
	return err
}

// ofRow reports whether a row's field names the subject. Then the refusal of a subject is
// about the messages that have it.
func (s *sink) ofRow() bool { return s.cfg.Subject.PerMessage() }

func (s *sink) disconnect() {
	if s.conn != nil {
		s.conn.close()
	}
	s.conn, s.win, s.broken = nil, nil, false
}

// openStream looks up the stream, creates it if it may, and reads from its
// configuration how to publish to it.
func (s *sink) openStream(ctx context.Context, subject string) error {
	var create *jetstream.StreamConfig
	if s.cfg.CreateStream {
		create = &jetstream.StreamConfig{Subjects: s.cfg.subjects(), Replicas: s.cfg.Replicas, Duplicates: s.cfg.DedupWindow.D()}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ConfirmTimeout.D())
	defer cancel()
	name := s.cfg.Stream
	if s.ofRow() {
		name = cmp.Or(name, s.stream) // the subject of one row finds no stream for all
	}
	stream, err := s.conn.stream(ctx, name, subject, create)
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
		s.lastSeq = 0 // deleted and created again
	}
	s.created = info.Created
	s.perKey = s.cfg.StrictOrder || (s.cfg.Pipelining == "auto" && s.mayReorder(ctx, info))
	clear(s.known)
	return nil
}

// mayReorder reports whether the stream could refuse or lose one message and store the
// next one of its key. When the first is sent again, it arrives after that. The stream
// or its account can refuse what exceeds their limits; between servers a message can get
// lost.
func (s *sink) mayReorder(ctx context.Context, info *jetstream.StreamInfo) bool {
	limited := info.Config.MaxMsgs > 0 || info.Config.MaxBytes > 0 || info.Config.DiscardNewPerSubject
	switch {
	case info.Config.Discard == jetstream.DiscardNew && limited, info.Config.Replicas > 1:
		return true
	case info.Cluster != nil && info.Cluster.Leader != "" && info.Cluster.Leader != s.conn.nc.ConnectedServerName():
		return true
	}

	account, err := s.account(ctx)
	switch {
	case errors.Is(err, nats.ErrPermissionViolation),
		errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		// The user may not ask, or the stream belongs to another account. Most
		// accounts have no limit.
		return false
	case err != nil:
		return true // until the next connection
	}
	return accountLimited(account, &info.Config)
}

// account asks for the account's limits on a connection of its own. The server reports a
// refused question to the connection, where it would look like the refusal of a message.
func (s *sink) account(ctx context.Context) (*jetstream.AccountInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, accountTimeout)
	defer cancel()
	c, err := dial(ctx, s.env, &s.cfg.connConfig, " (account)")
	if err != nil {
		return nil, err
	}
	defer c.close()
	info, err := c.js.AccountInfo(ctx)
	if err != nil {
		return nil, cmp.Or(c.refused(), err)
	}
	return info, nil
}

// accountLimited reports whether the account limits what streams like that one
// store. The server then refuses a large message and stores a small one after it.
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
	defer s.conn.dialer.CutAfter(ctx, 0)() // a write can block in the network

	s.win.begin(batch)
	stopped := s.send(ctx, batch)
	if stopped == nil || errors.Is(stopped, errNotSent) {
		stopped = cmp.Or(s.win.wait(ctx, s.win.sent), stopped)
	}
	return s.result(ctx, batch, stopped)
}

// send publishes batch. It returns why it stopped before its end, or nil.
func (s *sink) send(ctx context.Context, batch []relay.Message) error {
	w, perKey, bytes := s.win, s.perKey, 0
	clear(s.lastIn)
	for i := range batch {
		m := &batch[i]
		if w.out.Held(i) {
			continue
		}
		msg, size, demanding := s.enc.encode(m, w.replies[i])
		if err := s.check(ctx, m, size); err != nil {
			if w.out.Fail(i, err); relay.IsFatal(err) {
				return errNotSent
			}
			continue
		}

		// A message that the server may refuse for its headers or its subject must not be
		// overtaken.
		demanding = demanding || s.fresh
		bytes += size
		if flush := bytes > maxBytesInFlight || (demanding && !perKey); flush {
			if err := w.wait(ctx, w.sent); err != nil {
				return err
			}
			bytes, perKey = size, perKey || demanding
		}
		if err := s.awaitTurn(ctx, m.Key, i, perKey); err != nil {
			return err
		}

		w.sending(i)
		if err := s.conn.nc.PublishMsg(msg); err != nil {
			if errors.Is(err, nats.ErrBadHeaderMsg) {
				err = fmt.Errorf("%w; use printable ASCII without spaces and separators in their names", err)
			}
			if err = classify(fmt.Errorf("publish message %s: %w", m.ID, err)); !relay.IsPermanent(err) {
				return err
			}
			w.unsend(i, err)
		}
	}
	return nil
}

// awaitTurn waits until message i may be sent. After a refusal nothing more of the
// batch may.
func (s *sink) awaitTurn(ctx context.Context, key string, i int, perKey bool) error {
	outstanding, _ := s.win.state()
	if outstanding >= s.cfg.MaxInFlight {
		if err := s.win.wait(ctx, s.win.sent-s.cfg.MaxInFlight/2); err != nil {
			return err
		}
	}
	if perKey && key != "" {
		if last, ok := s.lastIn[key]; ok {
			if err := s.win.waitFor(ctx, last); err != nil {
				return err
			}
		}
		s.lastIn[key] = i
	}
	if _, denied := s.win.state(); denied {
		return errNotSent
	}
	return nil
}

// check returns the error with which the server or the client would refuse m, which
// was encoded last.
func (s *sink) check(ctx context.Context, m *relay.Message, size int) error {
	if err := s.checkSize(m, size); err != nil {
		if err := s.askAgain(ctx, m.Subject, size); err != nil {
			return err
		}
		if err := s.checkSize(m, size); err != nil {
			return err
		}
	}
	if s.enc.badValue != "" {
		return relay.Permanent(fmt.Errorf("message %s: header %q cannot be sent: its value has a line break, or a space at an end",
			m.ID, s.enc.badValue))
	}
	if s.fresh = false; s.known[m.Subject] {
		return nil
	}
	if !validSubject(m.Subject) {
		return s.refuse(badSubject, fmt.Errorf("message %s: %q is not a subject that can be published to", m.ID, m.Subject))
	}
	if limit := s.maxSubject(); len(m.Subject) > limit {
		return s.refuse(longSubject, fmt.Errorf("message %s: its subject has %d bytes; the server allows %d", m.ID, len(m.Subject), limit))
	}
	if !s.stores(m.Subject) { // unless the stream was changed
		if err := s.openStream(ctx, m.Subject); err != nil {
			return err
		}
		if err := s.checkStores(m.Subject); err != nil {
			return err
		}
	}
	if len(s.known) > maxKnown {
		clear(s.known)
	}
	s.known[strings.Clone(m.Subject)] = true
	s.fresh = s.ofRow()
	return nil
}

// maxSubject returns the longest subject that a line of the server holds.
func (s *sink) maxSubject() int {
	limit := maxControlLine - controlLineFix - len(s.win.prefix)
	if time.Since(s.learnt) < limitHolds {
		limit = min(limit, s.lineLimit)
	}
	return limit
}

// learn takes the longest subject in flight for the one that made a server, whose lines
// are shorter than the default, end the connection.
func (s *sink) learn(batch []relay.Message) {
	longest := 0
	for i := range batch {
		if s.win.inFlight(i) {
			longest = max(longest, len(batch[i].Subject))
		}
	}
	s.lineLimit, s.learnt = longest-1, time.Now()
}

// refuse is the refusal of a message's subject.
func (s *sink) refuse(answer string, err error) error {
	return refusals.Classify(err, answer, s.ofRow())
}

func (s *sink) checkSize(m *relay.Message, size int) error {
	if limit := s.conn.nc.MaxPayload(); int64(size) > limit {
		return relay.Permanent(fmt.Errorf("message %s is %d bytes with its headers; the server allows %d (max_payload)", m.ID, size, limit))
	}
	if limit := int(s.info.MaxMsgSize); limit > 0 && size > limit {
		return relay.Permanent(fmt.Errorf("message %s is %d bytes with its headers; stream %q allows %d (max_msg_size)",
			m.ID, size, s.stream, limit))
	}
	return nil
}

// askAgain looks the limits up before the sink refuses a message by them: they may have
// been raised since. It asks at most once a second. The server states max_payload only
// when a client connects; if that has changed, the sink must connect again.
func (s *sink) askAgain(ctx context.Context, subject string, size int) error {
	if time.Since(s.asked) < time.Second {
		return nil
	}
	if limit := s.conn.nc.MaxPayload(); int64(size) > limit {
		c, err := dial(ctx, s.env, &s.cfg.connConfig, " (limits)")
		if err != nil {
			return err
		}
		defer c.close()
		if c.nc.MaxPayload() != limit {
			s.broken = true
			return errLimitsChanged
		}
	}
	if err := s.openStream(ctx, subject); err != nil {
		return err
	}
	s.asked = time.Now()
	return nil
}

// stores reports whether the stream stores a subject, or some that a pattern covers.
func (s *sink) stores(subject string) bool {
	return slices.ContainsFunc(s.info.Subjects, func(pattern string) bool { return overlap(pattern, subject) })
}

func (s *sink) checkStores(subject string) error {
	if s.stores(subject) {
		return nil
	}
	err := fmt.Errorf("stream %q does not store subject %q, only %s: add it to the stream",
		s.stream, subject, strings.Join(s.info.Subjects, ", "))

	// Other rows can have a subject that the stream stores, if the template allows one.
	return refusals.Classify(err, notStored, s.ofRow() && s.stores(wildcards(s.cfg.Subject)))
}

// result ends the batch. When an answer is missing, it is unknown whether the message
// arrived. The connection must not be used again, because a late answer would count for
// the next batch.
func (s *sink) result(ctx context.Context, batch []relay.Message, stopped error) error {
	w := s.win
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.end()
	s.enc.msg.Data = nil // a large body is not retained
	s.lastSeq = max(s.lastSeq, w.lastSeq)
	if n := len(w.dups); n > 0 {
		s.dups += n
		s.dupID = strings.Clone(batch[w.dups[0]].ID)
	}
	for subject := range w.refused {
		delete(s.known, subject)
	}

	if len(w.silent) > 0 {
		err := s.explainSilence(ctx, batch[w.silent[0]].Subject)
		for _, i := range w.silent {
			w.out.Fail(i, cmp.Or(s.checkStores(batch[i].Subject), err))
		}
	}
	if stopped != nil && strings.Contains(strings.ToLower(stopped.Error()), longLine) {
		s.learn(batch)
	}
	if w.sent > w.done {
		s.broken = true
		stopped = relay.Unknown(stopped)
	}
	if stopped != nil {
		w.out.FailRest(stopped)
	}
	return w.out.Err()
}

// explainSilence returns why no stream answered to subject.
func (s *sink) explainSilence(ctx context.Context, subject string) error {
	s.broken = true // the next batch looks up the stream again
	if err := s.openStream(ctx, subject); err != nil {
		return err
	}
	return fmt.Errorf("publish to %q: stream %q is not available at the moment: %w", subject, s.stream, errNoResponders)
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

// DuplicateID implements [relay.DuplicateNamer].
func (s *sink) DuplicateID() string { return s.dupID }

// Destination implements [relay.Router].
func (s *sink) Destination(m *relay.Message) (string, error) {
	if !validSubject(m.Subject) {
		return "", s.refuse(badSubject, fmt.Errorf("message %s: %q is not a subject that can be published to", m.ID, m.Subject))
	}
	return m.Subject, nil
}

// Ping implements [relay.Pinger].
func (s *sink) Ping(ctx context.Context) error {
	if err := s.connect(ctx, ""); err != nil {
		return err
	}
	if s.cfg.Stream == "" && s.stream == "" {
		return s.conn.nc.FlushWithContext(ctx)
	}
	_, err := s.conn.js.Stream(ctx, s.stream)
	if err != nil {
		return s.conn.apiError(ctx, fmt.Errorf("look up stream %q: %w", s.stream, err))
	}
	return nil
}

// Guarantee implements [relay.Guarantor].
func (s *sink) Guarantee() relay.Guarantee {
	g := sinkGuarantee
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
	case s.cfg.Pipelining == "full":
		g.Weakest = "pipelining is full: a message that the stream refuses can be overtaken by one behind it in its key"
	}
	return g
}
