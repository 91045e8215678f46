package natsrelay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	prefetch      = 2000             // messages asked for ahead of Receive
	prefetchBytes = 8 << 20          // and their bytes
	pullExpires   = 30 * time.Second // how long a request for messages stands
	heartbeat     = 5 * time.Second  // the server shows that it still knows the request
)

// delivery is one message in our hands. It is the message's Token.
type delivery struct {
	*nats.Msg
	pull  *pull
	seq   uint64    // in the stream
	time  time.Time // when the stream stored it
	fresh time.Time // when the server last began to count ack_wait for it

	settled bool // with ackAll: waits for what was delivered before it
}

// pull asks the server for messages and keeps what arrives until it is
// acknowledged. It is bound to one connection.
type pull struct {
	link    *link
	info    *jetstream.ConsumerInfo
	sub     *nats.Subscription
	next    string // where requests go
	origin  string
	arrived chan struct{}
	done    chan struct{} // stop keepFresh
	stopped chan struct{} // keepFresh has ended
	ackAll  bool          // an acknowledgement stands for all before it
	begin   time.Time     // no request before it

	mu       sync.Mutex
	queue    []*delivery // not yet received
	queued   int         // bytes in queue
	fresh    []delivery  // to be handed out
	held     map[uint64]*delivery
	order    []*delivery // with ackAll, in place of held: as it was delivered
	due      *delivery   // with ackAll: the last to be acknowledged
	wanted   int         // asked for and not yet arrived
	serial   int         // of the last request; older ones' ends do not count
	maxBytes int         // of a request; 0 once a message turned out larger
	heard    time.Time
	ackedTo  uint64 // the highest sequence acknowledged
	err      error  // why no more can arrive
}

func newPull(l *link, info *jetstream.ConsumerInfo, floor uint64, begin time.Time) (*pull, error) {
	p := &pull{
		link: l, info: info, begin: begin, maxBytes: prefetchBytes, ackedTo: floor, heard: time.Now(),
		next:    apiPrefix(l.js) + "CONSUMER.MSG.NEXT." + info.Stream + "." + info.Name,
		origin:  "nats:" + info.Stream,
		arrived: make(chan struct{}, 1), done: make(chan struct{}), stopped: make(chan struct{}),
		held: make(map[uint64]*delivery), ackAll: info.Config.AckPolicy == jetstream.AckAllPolicy,
	}
	inbox := nats.NewInbox()
	var err error
	if p.sub, err = l.nc.Subscribe(inbox+".*", p.take); err != nil {
		return nil, fmt.Errorf("subscribe to consumer %q: %w", info.Name, err)
	}
	if err := p.sub.SetPendingLimits(-1, -1); err != nil {
		return nil, fmt.Errorf("subscribe to consumer %q: %w", info.Name, err)
	}
	go p.keepFresh(info.Config.AckWait)
	return p, nil
}

func apiPrefix(js jetstream.JetStream) string {
	return cmp.Or(js.Options().APIPrefix, "$JS.API.")
}

// stop ends the goroutine of newPull and waits for it.
func (p *pull) stop() {
	close(p.done)
	<-p.stopped
}

// receive waits for a message and returns what is there, up to limit.
func (p *pull) receive(ctx context.Context, limit int) ([]*delivery, error) {
	if err := p.awaitBegin(ctx); err != nil {
		return nil, err
	}
	watch := time.NewTimer(heartbeat)
	defer watch.Stop()
	for {
		if batch, err := p.dequeue(limit); len(batch) > 0 || err != nil {
			return batch, err
		}
		if err := p.request(); err != nil {
			return nil, err
		}
		watch.Reset(heartbeat)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.link.closed:
			return nil, p.link.lost()
		case <-p.arrived:
		case <-watch.C:
			if p.silent() > 3*heartbeat {
				p.fail(errors.New("the server has forgotten the request for messages: no heartbeat"))
			}
		}
	}
}

func (p *pull) awaitBegin(ctx context.Context) error {
	wait := time.Until(p.begin)
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-p.link.closed:
		return p.link.lost()
	case <-timer.C:
		p.mu.Lock()
		p.heard = time.Now() // silence counts from the first request
		p.mu.Unlock()
		return nil
	}
}

func (p *pull) dequeue(limit int) ([]*delivery, error) {
	p.mu.Lock()
	if len(p.queue) == 0 {
		defer p.mu.Unlock()
		return nil, p.err
	}
	n := min(limit, len(p.queue))
	batch := slices.Clone(p.queue[:n])
	p.queue = slices.Delete(p.queue, 0, n)
	for _, m := range batch {
		p.queued -= len(m.Data)
	}
	p.mu.Unlock()
	return batch, p.request() // ask for the next ones while these are worked on
}

// request asks for more messages when less than half of what may be ahead is
// here or on its way.
func (p *pull) request() error {
	p.mu.Lock()
	missing := prefetch - len(p.queue) - p.wanted
	if p.err != nil || missing < prefetch/2 || (p.wanted > 0 && p.maxBytes == 0) || p.queued > prefetchBytes/2 {
		defer p.mu.Unlock()
		if len(p.queue) > 0 {
			return nil
		}
		return p.err
	}
	ask := struct {
		Batch     int           `json:"batch"`
		MaxBytes  int           `json:"max_bytes,omitempty"`
		Expires   time.Duration `json:"expires"`
		Heartbeat time.Duration `json:"idle_heartbeat"`
	}{missing, p.maxBytes, pullExpires, heartbeat}
	if p.maxBytes == 0 {
		ask.Batch = 1 // a message larger than all of maxBytes is next
	}
	p.wanted += ask.Batch
	p.serial++
	reply := strings.TrimSuffix(p.sub.Subject, "*") + strconv.Itoa(p.serial)
	p.mu.Unlock()
	body, err := json.Marshal(ask)
	if err != nil {
		return err
	}
	if err := p.link.nc.PublishRequest(p.next, reply, body); err != nil {
		return fmt.Errorf("ask consumer %q for messages: %w", p.info.Name, err)
	}
	return nil
}

// take files one arrival. The client calls it from a goroutine.
func (p *pull) take(m *nats.Msg) {
	seq, stored, isDelivery := position(m.Reply)
	p.mu.Lock()
	p.heard = time.Now()
	if isDelivery {
		p.wanted = max(0, p.wanted-1)
		p.file(delivery{Msg: m, pull: p, seq: seq, time: stored, fresh: p.heard})
	} else if status := m.Header.Get("Status"); status != "" && m.Reply == "" || status == "100" {
		p.status(m, status)
	} else {
		p.err = fmt.Errorf("message on %q is not from a stream: reply %q", m.Subject, m.Reply)
	}
	p.mu.Unlock()
	select {
	case p.arrived <- struct{}{}:
	default:
	}
}

// file takes what was delivered into our hands.
func (p *pull) file(arrived delivery) {
	if len(p.fresh) == 0 {
		p.fresh = make([]delivery, 32) // few enough for one of them to keep the others
	}
	d := &p.fresh[0]
	p.fresh = p.fresh[1:]
	*d = arrived
	p.queue = append(p.queue, d)
	p.queued += len(d.Data)
	if p.ackAll {
		p.order = append(p.order, d)
	} else {
		p.held[d.seq] = d
	}
	if p.maxBytes == 0 {
		p.maxBytes = prefetchBytes
	}
}

// position reads a message's sequence in its stream, and when it was stored,
// from the subject that acknowledges it. There are two forms:
//
//	$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer's sequence>.<time>.<pending>
//	$JS.ACK.<domain>.<account>.<stream>.<consumer>.<delivered>.<sequence>.<consumer's sequence>.<time>.<pending>[.<token>]
func position(reply string) (seq uint64, stored time.Time, ok bool) {
	rest, ok := strings.CutPrefix(reply, "$JS.ACK.")
	before := 3 // tokens in front of the sequence
	switch n := strings.Count(rest, ".") + 1; {
	case !ok || n < 7 || n == 8:
		return 0, stored, false
	case n > 8:
		before = 5
	}
	for range before {
		_, rest, _ = strings.Cut(rest, ".")
	}
	sequence, rest, _ := strings.Cut(rest, ".")
	_, rest, _ = strings.Cut(rest, ".")
	at, _, _ := strings.Cut(rest, ".")
	seq, err := strconv.ParseUint(sequence, 10, 64)
	nanos, timeErr := strconv.ParseInt(at, 10, 64)
	return seq, time.Unix(0, nanos), err == nil && timeErr == nil
}

// status files what the server says about a request: that it has ended, and why.
func (p *pull) status(m *nats.Msg, code string) {
	description := m.Header.Get("Description")
	switch {
	case code == "100": // heartbeat
		return
	case code == "409" && strings.Contains(description, "MaxBytes"):
		if strings.Contains(description, "Message Size") {
			p.maxBytes = 0
		}
	case code == "404", code == "408", code == "409" && strings.Contains(description, "Batch Completed"):
	case code == "503":
		p.err = fmt.Errorf("stream %q or its consumer %q does not answer", p.info.Stream, p.info.Name)
	default: // consumer deleted, leader changed, server going down: look again
		p.err = fmt.Errorf("consumer %q of stream %q: %s (%s)", p.info.Name, p.info.Stream, description, code)
	}
	if pending, err := strconv.Atoi(m.Header.Get("Nats-Pending-Messages")); err == nil {
		p.wanted = max(0, p.wanted-pending)
		return
	}
	p.wanted = 0
}

func (p *pull) silent() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wanted == 0 {
		return 0
	}
	return time.Since(p.heard)
}

func (p *pull) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

func (p *pull) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		return nil // first what has arrived
	}
	return p.err
}

// translate fills out, which is empty, from a delivery.
func (p *pull) translate(m *delivery, out *relay.Message) {
	out.Subject, out.Op, out.Body, out.Time, out.Origin, out.Token = m.Subject, relay.OpEvent, m.Data, m.time, p.origin, m
	for name, values := range m.Header {
		for _, value := range values {
			if strings.EqualFold(name, nats.MsgIdHdr) {
				out.ID = value
				continue
			}
			out.AddWireHeader(name, value)
		}
	}
	if out.ID == "" {
		out.ID = "nats:" + p.info.Stream + ":" + strconv.FormatUint(m.seq, 10)
	}
}

var (
	ackBody  = []byte("+ACK")
	nakBody  = []byte("-NAK")
	busyBody = []byte("+WPI")
)

// ack acknowledges m without waiting for an answer. A lost one costs a second
// delivery.
func (p *pull) ack(m *delivery) {
	p.release(m)
	_ = p.link.nc.Publish(m.Reply, ackBody)
}

// ackSync acknowledges m and returns when the server has taken note.
func (p *pull) ackSync(ctx context.Context, m *delivery) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if _, err := p.link.nc.RequestWithContext(ctx, m.Reply, ackBody); err != nil {
		return fmt.Errorf("acknowledge sequence %d of stream %q: %w", m.seq, p.info.Stream, err)
	}
	p.release(m)
	return nil
}

func (p *pull) release(m *delivery) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held[m.seq] == m {
		delete(p.held, m.seq)
	}
	if p.due == m {
		p.due = nil
	}
	p.ackedTo = max(p.ackedTo, m.seq)
}

// settle marks m as done, for an acknowledgement that stands for all before it.
func (p *pull) settle(m *delivery) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m.settled = true
}

// dueAck lets go of everything up to the first delivery that is not settled, and
// returns the last of it, whose acknowledgement is due: it must not pass what is
// still in hand.
func (p *pull) dueAck() *delivery {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for ; n < len(p.order) && p.order[n].settled; n++ {
		p.due = p.order[n]
		p.ackedTo = max(p.ackedTo, p.due.seq)
	}
	clear(p.order[:n])
	p.order = p.order[n:]
	return p.due
}

// floor is the sequence up to which everything is acknowledged.
func (p *pull) floor() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	floor := p.ackedTo
	for m := range p.inHand() {
		floor = min(floor, m.seq-1)
	}
	return floor
}

// inHand yields what was delivered and is not yet acknowledged. It is called
// with the lock held.
func (p *pull) inHand() iter.Seq[*delivery] {
	if p.ackAll {
		return slices.Values(p.order)
	}
	return maps.Values(p.held)
}

// giveBack tells the server that what is held can be delivered again at once.
func (p *pull) giveBack() {
	p.mu.Lock()
	held := slices.SortedFunc(p.inHand(), func(a, b *delivery) int { return cmp.Compare(a.seq, b.seq) })
	p.mu.Unlock()
	for _, m := range held {
		if p.link.nc.Publish(m.Reply, nakBody) != nil {
			return
		}
	}
	_ = p.link.nc.FlushTimeout(time.Second) // what does not get through is redelivered after ack_wait
}

// keepFresh tells the server, for as long as a message is held, that it is being
// worked on, so that a slow inbox does not make it come again.
func (p *pull) keepFresh(ackWait time.Duration) {
	defer close(p.stopped)
	tick := time.NewTicker(max(ackWait/3, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-p.link.closed:
			return
		case now := <-tick.C:
			for _, m := range p.stale(now.Add(-ackWait / 4)) {
				if p.link.nc.Publish(m.Reply, busyBody) != nil {
					break
				}
			}
		}
	}
}

func (p *pull) stale(before time.Time) []*delivery {
	p.mu.Lock()
	defer p.mu.Unlock()
	var stale []*delivery
	for m := range p.inHand() {
		if m.fresh.Before(before) {
			m.fresh = time.Now()
			stale = append(stale, m)
		}
	}
	return stale
}

// lag asks the server how many messages it has not delivered yet.
func (p *pull) lag(ctx context.Context) (rows int64, seconds float64, err error) {
	consumer, err := p.link.js.Consumer(ctx, p.info.Stream, p.info.Name)
	if err != nil {
		return 0, 0, p.link.apiError(ctx, fmt.Errorf("look up consumer %q of stream %q: %w", p.info.Name, p.info.Stream, err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	rows = int64(consumer.CachedInfo().NumPending) + int64(len(p.queue))
	if rows == 0 {
		return 0, 0, nil
	}
	if len(p.queue) > 0 {
		return rows, time.Since(p.queue[0].time).Seconds(), nil
	}
	return rows, 0, nil
}
