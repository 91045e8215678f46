package redisrelay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	// transactionMessages and transactionBytes bound one MULTI, during which the
	// server serves nobody else.
	transactionMessages = 1000
	transactionBytes    = 4 << 20
	// cancelGrace is what a cancelled Publish leaves a batch in flight to be
	// confirmed.
	cancelGrace = time.Second
	// maxBulkDefault is Redis's proto-max-bulk-len where it does not tell.
	maxBulkDefault = 512 << 20
)

// sink adds messages to streams, a transaction for each run of up to
// transactionMessages. MULTI and not a bare pipeline, because a pipeline goes on
// behind a command that failed: when memory runs out for one XADD and is there
// again for the next, a key would be out of order. A transaction that meets OOM,
// READONLY, NOREPLICAS or a moved slot is refused as a whole. It is also faster,
// as the server parses first and executes in one go.
type sink struct {
	cfg     sinkConfig
	env     relay.Env
	open    func() redis.UniversalClient
	client  redis.UniversalClient
	conns   connSet
	cluster bool
	maxBulk int

	tails tails
	// doubt holds the IDs of a transaction whose reply was lost, and the streams
	// in which the next Publish looks for them.
	doubt        map[string]bool
	doubtStreams map[*stream]bool
	// present holds IDs that are in a stream though they were not reported as
	// confirmed.
	present map[string]bool

	waiter *redis.Conn // for WAIT, which speaks of its own connection only
	waits  *stream     // the stream whose node waiter is connected to

	chunk   []*entry // reused
	used    int
	headers []relay.Header
	cmds    []redis.Cmder
	name    []byte
}

// entry is one XADD. Its arguments point into it, so that filling it anew
// allocates nothing.
type entry struct {
	index  int // in the batch
	stream *stream

	id, subject, op string
	body            rawBody

	args  []any
	cmd   *redis.ZeroCopyStringCmd
	reply [48]byte
}

// rawBody makes go-redis write bytes through a pointer: a []byte in an any costs
// an allocation.
type rawBody []byte

// MarshalBinary returns b itself.
func (b *rawBody) MarshalBinary() ([]byte, error) { return *b, nil }

func openSink(ctx context.Context, env relay.Env, cfg sinkConfig) (*sink, error) {
	s := &sink{cfg: cfg, env: env, maxBulk: maxBulkDefault, present: make(map[string]bool)}
	open, err := newClients(cfg.connConfig, &s.conns, 2)
	if err != nil {
		return nil, err
	}
	s.open, s.client = open, open()
	_, s.cluster = s.client.(*redis.ClusterClient)
	if err := s.Ping(ctx); err != nil {
		_ = s.client.Close()
		return nil, err
	}
	// Managed servers forbid CONFIG; they keep the default.
	if limit, err := s.client.ConfigGet(ctx, "proto-max-bulk-len").Result(); err == nil {
		if n, err := strconv.Atoi(limit["proto-max-bulk-len"]); err == nil && n > 0 {
			s.maxBulk = n
		}
	}
	return s, nil
}

// Publish implements relay.Sink.
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	caller := ctx
	if err := caller.Err(); err != nil {
		return err
	}
	// What was sent is to be answered, even though nobody wants more.
	ctx, stop := s.conns.breakOff(caller, cancelGrace)
	defer stop()
	defer s.release()

	var failed relay.BatchError
	pending, err := s.route(ctx, batch, &failed)
	if err != nil {
		return err
	}
	for len(pending) > 0 {
		n := s.cut(batch, pending)
		err := caller.Err()
		if err == nil {
			err = s.transact(ctx, batch, pending[:n], &failed)
		}
		if err != nil {
			// Nothing more of the batch is sent.
			for _, r := range pending {
				if failed.Failed[r.index] == nil && !s.done(batch[r.index].ID) {
					failed.Fail(r.index, err)
				}
			}
			break
		}
		pending = pending[n:]
	}
	s.holdBack(batch, &failed)
	return failed.Err()
}

// routed is a message and the stream to which it goes.
type routed struct {
	index  int
	stream *stream
}

// route finds the stream of each message and leaves out those that cannot be
// sent, or are there already. In a cluster the messages come grouped by stream,
// since a transaction lives on one node.
func (s *sink) route(ctx context.Context, batch []relay.Message, failed *relay.BatchError) ([]routed, error) {
	pending := make([]routed, 0, len(batch))
	fresh := false
	var held map[string]bool
	for i := range batch {
		m := &batch[i]
		err := error(nil)
		s.name, err = s.cfg.Stream.Append(s.name[:0], m)
		switch {
		case err != nil:
		case len(s.name) == 0:
			err = relay.Permanent(fmt.Errorf("the stream's name is empty: template %q of %s", s.cfg.Stream, m.ID))
		case len(m.Body) > s.maxBulk:
			err = relay.Permanent(fmt.Errorf("body of %s has %d bytes, the server's proto-max-bulk-len is %d", m.ID, len(m.Body), s.maxBulk))
		case m.Key != "" && held[m.Key]:
			err = relay.ErrHeldBack
		}
		if err != nil {
			failed.Fail(i, err)
			if m.Key != "" {
				if held == nil {
					held = make(map[string]bool)
				}
				held[m.Key] = true
			}
			continue
		}
		st := s.tails.get(s.name)
		fresh = fresh || !st.known
		s.tails.table = cmp.Or(s.tails.table, m.StreamTable)
		pending = append(pending, routed{i, st})
	}
	if fresh && s.cfg.Resume {
		if err := s.tails.load(ctx, s.client); err != nil {
			return nil, err
		}
	}
	if s.doubt != nil {
		if err := s.settleDoubt(ctx); err != nil {
			return nil, err
		}
	}
	if len(s.present) > 0 {
		kept := pending[:0]
		for _, r := range pending {
			if !s.done(batch[r.index].ID) {
				kept = append(kept, r)
			}
		}
		pending = kept
	}
	if s.cluster {
		pending = groupByStream(pending)
	}
	return pending, nil
}

func (s *sink) done(id string) bool { return len(s.present) > 0 && s.present[id] }

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

func groupByStream(pending []routed) []routed {
	groups := make(map[*stream][]routed)
	var order []*stream
	for _, r := range pending {
		if groups[r.stream] == nil {
			order = append(order, r.stream)
		}
		groups[r.stream] = append(groups[r.stream], r)
	}
	if len(order) < 2 {
		return pending
	}
	out := make([]routed, 0, len(pending))
	for _, st := range order {
		out = append(out, groups[st]...)
	}
	return out
}

// transact adds run in one transaction. An error means that none of run counts;
// failures of single messages, which a permission withdrawn between MULTI and
// EXEC can cause, go into failed.
func (s *sink) transact(ctx context.Context, batch []relay.Message, run []routed, failed *relay.BatchError) error {
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
	if _, err = pipe.Exec(ctx); err != nil {
		if err := s.abort(batch, failed, err); err != nil {
			return err
		}
	}
	var refused error
	for _, e := range s.chunk[:s.used] {
		if err := e.cmd.Err(); err != nil {
			refused = classify(fmt.Errorf("add %s to stream %q: %w", batch[e.index].ID, e.stream.name, err))
			failed.Fail(e.index, refused)
			continue
		}
		e.stream.last = e
	}
	s.tails.settle()
	if refused != nil {
		for _, e := range s.chunk[:s.used] {
			if e.cmd.Err() == nil {
				s.present[batch[e.index].ID] = true
			}
		}
		return refused
	}
	return s.awaitReplicas(ctx)
}

// unanswered returns what has kept the server's answer from coming, or its rest:
// EXEC is all or nothing, so that one entry without an answer leaves them all
// open. It returns nil when the server has answered.
func (s *sink) unanswered(err error) error {
	if !isReply(err) {
		return err
	}
	for _, e := range s.chunk[:s.used] {
		if err := e.cmd.Err(); err != nil && !isReply(err) {
			return err
		}
	}
	return nil
}

// executed reports whether EXEC was answered with results: then at least one
// command has an entry id.
func (s *sink) executed() bool {
	for _, e := range s.chunk[:s.used] {
		if e.cmd.Err() == nil && e.cmd.Val() > 0 {
			return true
		}
	}
	return false
}

// abort returns the error of a transaction that does not count: its answer was
// lost, or it was refused as a whole. It returns nil for one that was carried out
// and has refused single messages only.
func (s *sink) abort(batch []relay.Message, failed *relay.BatchError, err error) error {
	if lost := s.unanswered(err); lost != nil {
		s.remember()
		s.reconnect()
		return classify(fmt.Errorf("add %d messages to stream %q: %w", s.used, s.chunk[0].stream.name, lost))
	}
	if s.executed() {
		return nil
	}
	s.reconnect()
	return s.blame(batch, failed, err)
}

// blame returns the error of a transaction that was refused, and fails the
// message for which it was, where the server has said so.
func (s *sink) blame(batch []relay.Message, failed *relay.BatchError, err error) error {
	for _, e := range s.chunk[:s.used] {
		cause := e.cmd.Err()
		if cause == nil || strings.HasPrefix(cause.Error(), "EXECABORT") || !isReply(cause) {
			continue
		}
		cause = classify(fmt.Errorf("add %s to stream %q: %w", batch[e.index].ID, e.stream.name, cause))
		if !relay.IsPermanent(cause) {
			return cause
		}
		failed.Fail(e.index, cause)
		return fmt.Errorf("not added: the transaction was refused for %s", batch[e.index].ID)
	}
	return classify(fmt.Errorf("add %d messages to stream %q: %w", s.used, s.chunk[0].stream.name, err))
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

// shape makes the entry an XADD to stream with room for so many arguments behind
// the body. Most often it already is.
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

// trim makes the last entry of each stream in the chunk trim it: once a
// transaction is as good as once an entry. The three arguments more change the
// entry's shape, which is even otherwise, so it is made anew when used again.
func (s *sink) trim(ctx context.Context) {
	how, what := "", ""
	switch {
	case s.cfg.MaxLen > 0:
		how, what = "maxlen", strconv.FormatInt(s.cfg.MaxLen, 10)
	case s.cfg.MinID.id != "":
		how, what = "minid", s.cfg.MinID.id
	case s.cfg.MinID.age > 0:
		how, what = "minid", strconv.FormatInt(s.tails.now().Add(-s.cfg.MinID.age).UnixMilli(), 10)
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

// release lets go of what belongs to the caller.
func (s *sink) release() {
	for _, e := range s.chunk {
		if e.id == "" {
			break
		}
		e.id, e.subject, e.op, e.body = "", "", "", nil
	}
	clear(s.headers)
}

// holdBack fails what stands behind a failure of its key. Where such a message
// is in its stream already, which happens when a key's messages go to several
// streams of a cluster, it is remembered and not added again.
func (s *sink) holdBack(batch []relay.Message, failed *relay.BatchError) {
	if len(failed.Failed) == 0 {
		if len(s.present) > 0 {
			for i := range batch {
				delete(s.present, batch[i].ID)
			}
		}
		return
	}
	before := make(map[int]bool, len(failed.Failed))
	for i := range failed.Failed {
		before[i] = true
	}
	failed.HoldBack(batch)
	for i := range batch {
		switch {
		case before[i]:
		case failed.Failed[i] != nil:
			s.present[batch[i].ID] = true
		default:
			delete(s.present, batch[i].ID)
		}
	}
}

// remember notes what the transaction at hand may have added.
func (s *sink) remember() {
	if s.doubt == nil {
		s.doubt, s.doubtStreams = make(map[string]bool), make(map[*stream]bool)
	}
	for _, e := range s.chunk[:s.used] {
		s.doubt[e.id] = true
		s.doubtStreams[e.stream] = true
	}
}

// settleDoubt looks which messages of a transaction whose reply was lost are in
// the streams. Where replicas must have them too, it is no use to know.
func (s *sink) settleDoubt(ctx context.Context) error {
	if s.cfg.Resume && s.cfg.WaitReplicas == 0 {
		for st := range s.doubtStreams {
			err := scan(ctx, s.client, st.name, st.tail, "+", func(id, dedup string) {
				st.tail, s.tails.text = id, ""
				if s.doubt[dedup] {
					s.present[dedup] = true
				}
			})
			if err != nil {
				return err
			}
		}
	}
	s.doubt, s.doubtStreams = nil, nil
	return nil
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

// awaitReplicas waits until the replicas have what this connection wrote. When
// too few do, the messages are in the stream and are not confirmed: they are
// added a second time rather than lost.
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

// reconnect has the next try dial, and find the master, anew. go-redis gives up
// a connection that broke, but not a waiter whose connection it was, nor one to a
// master that has become a replica and is still there: in a transaction READONLY
// hides behind EXECABORT. An old master that was cut off may have other reasons
// to refuse, as NOREPLICAS, so it is done after every refusal.
func (s *sink) reconnect() {
	s.closeWaiter()
	_ = s.client.Close() // nothing is under way
	s.client = s.open()
}

func (s *sink) closeWaiter() {
	if s.waiter != nil {
		_ = s.waiter.Close() // gives the connection back
		s.waiter, s.waits = nil, nil
	}
}

// Limits implements relay.Limiter.
func (s *sink) Limits() (messages, bytes int) { return transactionMessages, transactionBytes }

// Destination implements relay.Router.
func (s *sink) Destination(m *relay.Message) (string, error) { return s.cfg.Stream.Render(m) }

// Ping implements relay.Pinger.
func (s *sink) Ping(ctx context.Context) error {
	if err := s.client.Ping(ctx).Err(); err != nil {
		return classify(fmt.Errorf("connect to Redis: %w", err))
	}
	return nil
}

// Guarantee implements relay.Guarantor.
func (s *sink) Guarantee() relay.Guarantee {
	g := Backend().SinkGuarantee
	if !s.cfg.Resume {
		g.Delivery, g.Dedup = "at least once", "receivers, by field dedup_key: resume is off"
	}
	if s.cfg.WaitReplicas > 0 {
		g.Weakest = fmt.Sprintf("a failover to a replica that is not among the %d that must have each batch", s.cfg.WaitReplicas)
	}
	return g
}

// Close implements relay.Sink.
func (s *sink) Close() error {
	s.closeWaiter()
	if err := s.client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return err
	}
	return nil
}
