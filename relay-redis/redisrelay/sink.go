package redisrelay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

const (
	// transactionMessages and transactionBytes bound one MULTI, during which the server
	// serves no other client.
	transactionMessages = 1000
	transactionBytes    = 4 << 20
	// cancelGrace is the time for the answer to what a cancelled Publish has sent.
	cancelGrace = time.Second
	// maxBulkDefault is Redis's default of proto-max-bulk-len.
	maxBulkDefault = 512 << 20
)

// sink adds messages to streams, a transaction for each run of up to
// transactionMessages. A bare pipeline would continue after a command that failed. If
// memory is short for one XADD and free again for the next, a key would be out of
// order. A transaction that meets OOM, READONLY, NOREPLICAS or a moved slot is refused
// as a whole. It is also faster: the server parses first and executes in one go.
type sink struct {
	cfg     sinkConfig
	env     relay.Env
	open    func() redis.UniversalClient
	client  redis.UniversalClient
	dialer  relaynet.Dialer
	cluster bool
	maxBulk int
	asked   time.Time // when maxBulk was looked up last

	tails  tails
	waiter *redis.Conn // for WAIT, which is about its own connection only
	waits  *stream     // the stream whose node waiter is connected to

	out     relay.Outcome
	chunk   []*entry // reused, as what follows
	used    int      // entries of the transaction at hand
	headers []relay.Header
	cmds    []redis.Cmder
	name    []byte
}

// entry is one XADD. Its arguments point into it, so that filling it again allocates
// nothing.
type entry struct {
	index  int // in the batch
	stream *stream

	id, subject, op string
	body            rawBody

	args  []any
	cmd   *redis.ZeroCopyStringCmd
	reply [48]byte
}

// rawBody makes go-redis write bytes through a pointer: a []byte in an any would cost
// an allocation.
type rawBody []byte

// MarshalBinary returns b itself.
func (b *rawBody) MarshalBinary() ([]byte, error) { return *b, nil }

func newSink(ctx context.Context, env relay.Env, cfg sinkConfig) (*sink, error) {
	s := &sink{cfg: cfg, env: env, maxBulk: maxBulkDefault}
	var err error
	if s.open, err = newClients(env, &s.cfg.connConfig, &s.dialer, 2); err != nil {
		return nil, err
	}
	s.client = s.open()
	_, s.cluster = s.client.(*redis.ClusterClient)
	if err := s.Ping(ctx); err != nil {
		_ = s.client.Close()
		return nil, err
	}
	s.readMaxBulk(ctx)
	return s, nil
}

// readMaxBulk looks up the largest value, at most once a second: it may have been raised
// since. Managed servers forbid CONFIG; they keep the default.
func (s *sink) readMaxBulk(ctx context.Context) int {
	if time.Since(s.asked) < time.Second {
		return s.maxBulk
	}
	s.asked = time.Now()
	if limit, err := s.client.ConfigGet(ctx, "proto-max-bulk-len").Result(); err == nil {
		if n, err := strconv.Atoi(limit["proto-max-bulk-len"]); err == nil && n > 0 {
			s.maxBulk = n
		}
	}
	return s.maxBulk
}

// Publish implements [relay.Sink].
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	if err := s.out.Begin(ctx, batch); err != nil {
		return err
	}
	caller := ctx
	ctx, cancel := backoff.Outlive(caller, cancelGrace)
	defer cancel()
	defer s.dialer.CutAfter(caller, cancelGrace)()
	defer s.release()

	pending, err := s.route(ctx, batch)
	if err != nil {
		return err
	}
	for len(pending) > 0 {
		n := s.cut(batch, pending)
		err := caller.Err()
		if err == nil {
			err = s.transact(ctx, batch, pending[:n])
		}
		if err != nil {
			s.out.FailRest(err) // nothing more of the batch is sent
			break
		}
		pending = pending[n:]
	}
	return s.out.Err()
}

// routed is a message and the stream to which it goes.
type routed struct {
	index  int
	stream *stream
}

// route finds the stream of each message and fails those that cannot be sent. In a
// cluster the messages are grouped by stream, because a transaction runs on one node.
func (s *sink) route(ctx context.Context, batch []relay.Message) (pending []routed, err error) {
	pending = make([]routed, 0, len(batch))
	fresh := false
	for i := range batch {
		if s.out.Held(i) {
			continue
		}
		st, err := s.streamOf(ctx, &batch[i])
		if err != nil {
			s.out.Fail(i, err)
			continue
		}
		fresh = fresh || !st.known
		pending = append(pending, routed{i, st})
	}
	if fresh && s.cfg.Resume {
		err = s.tails.load(ctx, s.client, s.classify)
		pending = slices.DeleteFunc(pending, func(r routed) bool {
			if r.stream.refused != nil && !s.out.Held(r.index) {
				s.out.Fail(r.index, fmt.Errorf("message %s: %w", batch[r.index].ID, r.stream.refused))
			}
			return s.out.Failed(r.index) || s.out.Held(r.index)
		})
	}
	if s.cluster {
		pending = groupByStream(pending)
	}
	return pending, err
}

func (s *sink) streamOf(ctx context.Context, m *relay.Message) (*stream, error) {
	var err error
	s.name, err = s.cfg.Stream.Append(s.name[:0], m)
	switch {
	case err != nil:
		return nil, err
	case len(s.name) == 0:
		return nil, relay.Permanent(fmt.Errorf("the stream's name is empty: template %q of %s", s.cfg.Stream, m.ID))
	case len(m.Body) > s.maxBulk && len(m.Body) > s.readMaxBulk(ctx):
		return nil, relay.Permanent(fmt.Errorf("body of %s has %d bytes, the server's proto-max-bulk-len is %d", m.ID, len(m.Body), s.maxBulk))
	}
	s.tails.table = cmp.Or(s.tails.table, m.StreamTable)
	return s.tails.get(s.name), nil
}

// cut returns how many of pending make the next transaction.
func (s *sink) cut(batch []relay.Message, pending []routed) int {
	bytes := 0
	for n, r := range pending {
		bytes += batch[r.index].Size()
		if n > 0 && (n == transactionMessages || bytes > transactionBytes || (s.cluster && r.stream != pending[0].stream)) {
			return n
		}
	}
	return len(pending)
}

// groupByStream sorts pending by stream, in the order of each stream's first message.
func groupByStream(pending []routed) []routed {
	rank := make(map[*stream]int)
	for _, r := range pending {
		if _, ok := rank[r.stream]; !ok {
			rank[r.stream] = len(rank)
		}
	}
	slices.SortStableFunc(pending, func(a, b routed) int { return rank[a.stream] - rank[b.stream] })
	return pending
}

// transact adds run in one transaction. It confirms what was added, and fails single
// messages that were refused, as when a permission is withdrawn between MULTI and
// EXEC. With an error nothing more may be sent.
func (s *sink) transact(ctx context.Context, batch []relay.Message, run []routed) error {
	s.used, s.headers, s.cmds = 0, s.headers[:0], s.cmds[:0]
	for _, r := range run {
		s.cmds = append(s.cmds, s.fill(&batch[r.index], r).cmd)
	}
	s.trim(ctx)
	pipe, err := s.pipeline(ctx, run[0].stream)
	if err != nil {
		return classify(err)
	}
	_ = pipe.BatchProcess(ctx, s.cmds...) // queues only
	if _, err := pipe.Exec(ctx); err != nil {
		if err := s.explain(batch, err); err != nil {
			s.reconnect()
			return err
		}
	}

	var refused error
	for _, e := range s.chunk[:s.used] {
		if err := e.cmd.Err(); err != nil {
			err = s.addError(batch, e, err)
			s.out.Fail(e.index, err)
			if !relay.IsPermanent(err) {
				refused = err
			}
			continue
		}
		e.stream.last = e
	}
	s.tails.settle()
	if refused == nil {
		if err := s.awaitReplicas(ctx); err != nil {
			return err
		}
	}
	for _, r := range run {
		s.out.Confirm(r.index)
	}
	return refused
}

// explain returns the error of a transaction that does not count, because it was
// refused as a whole or its answer was lost. It returns nil for one that was executed:
// then at least one entry has an id.
func (s *sink) explain(batch []relay.Message, execErr error) error {
	lost, cause, executed := error(nil), execErr, false
	if !isReply(execErr) {
		lost = execErr
	}
	var blamed *entry
	for _, e := range s.chunk[:s.used] {
		switch err := e.cmd.Err(); {
		case err == nil:
			executed = executed || e.cmd.Val() > 0
		case !isReply(err):
			lost = err // EXEC is all or nothing: one entry without an answer leaves all open
		case blamed == nil && !strings.HasPrefix(err.Error(), "EXECABORT"):
			blamed, cause = e, err
		}
	}

	what := fmt.Sprintf("add %d messages to stream %q", s.used, s.chunk[0].stream.name)
	switch {
	case lost != nil && s.cfg.WaitReplicas > 0:
		return classify(fmt.Errorf("%s: %w", what, lost)) // to be added again: replicas may lack them
	case lost != nil:
		return relay.Unknown(classify(fmt.Errorf("%s: %w", what, lost)))
	case executed:
		return nil
	case blamed == nil:
		return classify(fmt.Errorf("%s: %w", what, cause))
	}
	if cause = s.addError(batch, blamed, cause); !relay.IsPermanent(cause) {
		return cause
	}
	s.out.Fail(blamed.index, cause)
	return fmt.Errorf("not added: the transaction was refused for %s", batch[blamed.index].ID)
}

func (s *sink) addError(batch []relay.Message, e *entry, err error) error {
	return s.classify(fmt.Errorf("add %s to stream %q: %w", batch[e.index].ID, e.stream.name, err))
}

// fill makes the next entry of the chunk out of m.
func (s *sink) fill(m *relay.Message, r routed) *entry {
	if s.used == len(s.chunk) {
		s.chunk = append(s.chunk, new(entry))
	}
	e := s.chunk[s.used]
	s.used++
	e.index, e.id, e.subject, e.op, e.body = r.index, m.ID, m.Subject, m.Op, m.Body

	from := len(s.headers)
	s.headers = m.WireHeaders(s.headers)
	if s.env.Identity != "" {
		s.headers = append(s.headers, relay.Header{Name: relay.HeaderPipelineID, Value: s.env.Identity})
	}
	headers := s.headers[from:]
	if len(headers) > 0 && headers[0].Name == relay.HeaderOp {
		headers = headers[1:] // a field of its own
	}
	e.shape(r.stream, 2*len(headers))
	args := e.args[11:]
	for i := range headers {
		headers[i].Name = fieldName(headers[i].Name)
		args[2*i], args[2*i+1] = &headers[i].Name, &headers[i].Value
	}
	return e
}

// shape makes the entry an XADD to st with room for that many arguments behind the
// body. Usually it already is.
func (e *entry) shape(st *stream, fields int) {
	if e.cmd != nil && e.stream == st && len(e.args) == 11+fields {
		e.cmd.SetErr(nil)
		e.cmd.SetVal(0)
		return
	}
	e.stream = st
	e.args = make([]any, 11+fields)
	// A cluster client finds the node by the first two, which must be strings.
	e.args[0], e.args[1], e.args[2] = "xadd", st.arg, "*"
	e.args[3], e.args[4], e.args[5], e.args[6] = fieldID, &e.id, fieldSubject, &e.subject
	e.args[7], e.args[8], e.args[9], e.args[10] = fieldOp, &e.op, fieldPayload, &e.body
	e.cmd = redis.NewZeroCopyStringCmd(context.Background(), e.reply[:], e.args...) // the pipeline's context counts
}

// trim makes the last entry of each stream in the transaction trim the stream. Three
// more arguments change the entry's shape, so it is made again when it is reused.
func (s *sink) trim(ctx context.Context) {
	how, what, age := "", "", s.cfg.minAge()
	switch {
	case s.cfg.MaxLen > 0:
		how, what = "maxlen", strconv.FormatInt(s.cfg.MaxLen, 10)
	case age > 0:
		how, what = "minid", strconv.FormatInt(s.tails.now().Add(-age).UnixMilli(), 10)
	case s.cfg.MinID != "":
		how, what = "minid", s.cfg.MinID
	default:
		return
	}
	trimmed := make(map[*stream]bool)
	for i := s.used - 1; i >= 0; i-- {
		e := s.chunk[i]
		if trimmed[e.stream] {
			continue
		}
		trimmed[e.stream] = true
		plain := e.args
		e.args = append([]any{"xadd", e.stream.arg, how, "~", what}, plain[2:]...)
		e.cmd = redis.NewZeroCopyStringCmd(ctx, e.reply[:], e.args...)
		s.cmds[i] = e.cmd
	}
}

// release drops what belongs to the caller.
func (s *sink) release() {
	s.out.Reset(nil)
	for _, e := range s.chunk {
		if e.id == "" {
			break
		}
		e.id, e.subject, e.op, e.body = "", "", "", nil
	}
	clear(s.headers)
}

// pipeline opens a transaction on the node of st.
func (s *sink) pipeline(ctx context.Context, st *stream) (redis.Pipeliner, error) {
	if s.cfg.WaitReplicas == 0 {
		return s.client.TxPipeline(), nil
	}
	if s.waiter != nil && (!s.cluster || s.waits == st) {
		return s.waiter.TxPipeline(), nil
	}
	s.closeWaiter()
	switch c := s.client.(type) {
	case *redis.ClusterClient:
		node, err := c.MasterForKey(ctx, st.name)
		if err != nil {
			return nil, err
		}
		s.waiter = node.Conn()
	case *redis.Client:
		s.waiter = c.Conn()
	}
	s.waits = st
	return s.waiter.TxPipeline(), nil
}

// awaitReplicas waits until the replicas have what this connection wrote. When too few
// have, the messages are in the stream and not confirmed: they are added again rather
// than lost.
func (s *sink) awaitReplicas(ctx context.Context) error {
	if s.cfg.WaitReplicas == 0 {
		return nil
	}
	got, err := s.waiter.Wait(ctx, int(s.cfg.WaitReplicas), s.cfg.WaitTimeout.D()).Result()
	if err == nil && got < s.cfg.WaitReplicas {
		err = fmt.Errorf("%d of %d replicas have the batch after %s", got, s.cfg.WaitReplicas, s.cfg.WaitTimeout)
	}
	if err != nil {
		s.closeWaiter()
		return classify(fmt.Errorf("wait for replicas: %w", err))
	}
	return nil
}

// reconnect makes the next try connect, and find the master, again. go-redis drops a
// connection that broke, but no waiter on it. It keeps a connection to a master that has
// become a replica, because in a transaction READONLY hides behind EXECABORT. A master
// without its replicas may refuse for other reasons, as NOREPLICAS, so every refusal
// leads here.
func (s *sink) reconnect() {
	s.closeWaiter()
	_ = s.client.Close() // no call is running
	s.client = s.open()
}

func (s *sink) closeWaiter() {
	if s.waiter != nil {
		_ = s.waiter.Close() // gives the connection back
		s.waiter, s.waits = nil, nil
	}
}

// Limits implements [relay.Limiter].
func (s *sink) Limits() (messages, bytes int) { return transactionMessages, transactionBytes }

// Destination implements [relay.Router].
func (s *sink) Destination(m *relay.Message) (string, error) { return s.cfg.Stream.Render(m) }

// Ping implements [relay.Pinger].
func (s *sink) Ping(ctx context.Context) error { return ping(ctx, s.client) }

// Guarantee implements [relay.Guarantor].
func (s *sink) Guarantee() relay.Guarantee {
	g := sinkGuarantee
	if !s.cfg.Resume {
		g.Delivery, g.Dedup = "at least once", "receivers, by field dedup_key: resume is off"
	}
	if s.cfg.WaitReplicas > 0 {
		g.Weakest = fmt.Sprintf("a failover to a replica that is not among the %d that must have each batch", s.cfg.WaitReplicas)
	}
	return g
}

// Close implements [relay.Sink].
func (s *sink) Close() error {
	s.closeWaiter()
	if err := s.client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return err
	}
	return nil
}
