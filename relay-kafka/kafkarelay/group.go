package kafkarelay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// generation is the group between two rebalances. The source's mutex guards
// ending and the trackers.
type generation struct {
	*kafka.Generation
	parts  []*assigned
	ending bool // nothing more is handed out
	ended  chan struct{}
}

// assigned is a partition that is ours in a generation.
type assigned struct {
	tracker
	spot       *spot
	topic      string
	generation *generation
}

func (g *generation) over() bool {
	select {
	case <-g.ended:
		return true
	default:
		return false
	}
}

// run takes part in the group until ctx ends.
func (s *source) run(ctx context.Context) {
	defer close(s.done)
	defer s.cluster.reset()
	for ctx.Err() == nil {
		gen, err := s.group.Next(ctx)
		if err != nil {
			s.report(ctx, classify(fmt.Errorf("join group %q: %w", s.cfg.group(s.env), err)))
			continue
		}
		g := &generation{Generation: gen, ended: make(chan struct{})}
		// The group waits for this function before it joins the next generation.
		// Closing the group ends the generation, and must not wait for itself.
		gen.Start(func(until context.Context) { s.serve(ctx, until, g) })
		select {
		case <-g.ended:
		case <-ctx.Done():
		}
	}
	s.leave()
}

// leaveWithin is how long the group may take to end, and then again to take our
// leave.
const leaveWithin = time.Second

// leave closes the group. A request that is not answered by then, to be let into
// the group above all, is given up.
func (s *source) leave() {
	defer s.cluster.lines.close()
	defer time.AfterFunc(leaveWithin, s.cluster.lines.cut).Stop()
	defer time.AfterFunc(2*leaveWithin, s.cluster.lines.close).Stop()
	_ = s.group.Close()
}

// report gives err to the next Receive.
func (s *source) report(ctx context.Context, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, kafka.RebalanceInProgress) {
		return
	}
	select {
	case s.errs <- err:
	case <-ctx.Done():
	}
}

// serve reads g's partitions until the generation ends, and then waits a while
// for what is handed out to be settled: so a rebalance repeats nothing.
func (s *source) serve(ctx, until context.Context, g *generation) {
	defer close(g.ended)
	// A generation's context has no deadline and no cause, and cannot be a parent
	// of others without a goroutine; this one ends with either.
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	var wait sync.WaitGroup
	wait.Go(func() {
		defer cancel()
		select {
		case <-until.Done():
		case <-work.Done():
		}
	})
	if err := s.take(work, g); err != nil {
		s.report(work, err)
	} else {
		s.fetch(work, g)
	}
	cancel()
	wait.Wait()
	s.drain(ctx, g)
}

// take finds where to begin in each partition.
func (s *source) take(ctx context.Context, g *generation) error {
	fresh := make(map[string]map[int]int64)
	for topic, parts := range g.Assignments {
		var ends []int64
		for _, a := range parts {
			p := &assigned{topic: topic, generation: g, spot: &spot{topic: topic, partition: a.ID, offset: a.Offset}}
			if a.Offset < 0 {
				if ends == nil {
					var err error
					if ends, err = s.begin(ctx, topic, parts); err != nil {
						return err
					}
				}
				p.spot.offset = ends[a.ID]
				if fresh[topic] == nil {
					fresh[topic] = make(map[int]int64)
				}
				fresh[topic][a.ID] = p.spot.offset
			}
			p.position, p.committed = p.spot.offset, p.spot.offset
			g.parts = append(g.parts, p)
		}
	}
	// A position that was chosen must not be chosen again: "latest" would be a
	// later one, past messages that were never handed out.
	if len(fresh) > 0 {
		if err := g.CommitOffsets(fresh); err != nil {
			return classify(fmt.Errorf("commit the first position of group %q: %w", g.GroupID, err))
		}
	}
	return nil
}

// begin returns where to begin in partitions that have no position. The client
// library takes an error of the coordinator for that, so ask it again.
func (s *source) begin(ctx context.Context, topic string, parts []kafka.PartitionAssignment) ([]int64, error) {
	ids := make([]int, 0, len(parts))
	most := 0
	for _, a := range parts {
		ids = append(ids, a.ID)
		most = max(most, a.ID+1)
	}
	res, err := s.cluster.client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: s.cfg.group(s.env), Topics: map[string][]int{topic: ids}})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		s.cluster.reset()
		return nil, classify(fmt.Errorf("look up the position of group %q: %w", s.cfg.group(s.env), err))
	}
	which := kafka.FirstOffset
	if s.cfg.AutoOffsetReset == "latest" {
		which = kafka.LastOffset
	}
	offsets, err := patiently(ctx, func() ([]int64, error) { return s.cluster.offsets(ctx, topic, most, which) })
	if err != nil {
		return nil, err
	}
	for _, p := range res.Topics[topic] {
		if p.Error != nil {
			return nil, classify(fmt.Errorf("look up the position of partition %d of topic %q: %w", p.Partition, topic, p.Error))
		}
		if p.CommittedOffset >= 0 && p.Partition < most {
			offsets[p.Partition] = p.CommittedOffset
		}
	}
	return offsets, nil
}

// fetch reads g's partitions from their leaders, and asks who leads anew when
// one of them does not answer well.
func (s *source) fetch(ctx context.Context, g *generation) {
	if len(g.parts) == 0 {
		<-ctx.Done() // there are more members than partitions
	}
	for ctx.Err() == nil {
		byLeader, err := s.leaders(ctx, g)
		if err == nil {
			err = s.fetchFrom(ctx, byLeader)
		}
		if ctx.Err() != nil {
			return
		}
		s.cluster.reset()
		if err != nil {
			s.report(ctx, err)
		}
		_ = backoff.Sleep(ctx, 50*time.Millisecond)
	}
}

func (s *source) leaders(ctx context.Context, g *generation) (map[int][]*assigned, error) {
	res, err := s.cluster.layout(ctx, s.cfg.Topic...)
	if err != nil {
		return nil, err
	}
	leader := make(map[string]map[int]int)
	for _, t := range res.Topics {
		leader[t.Name] = make(map[int]int)
		for _, p := range t.Partitions {
			if p.Error == nil {
				leader[t.Name][p.ID] = p.Leader.ID
			}
		}
	}
	byLeader := make(map[int][]*assigned)
	for _, p := range g.parts {
		id, ok := leader[p.topic][p.spot.partition]
		if !ok {
			return nil, fmt.Errorf("partition %d of topic %q has no leader", p.spot.partition, p.topic)
		}
		byLeader[id] = append(byLeader[id], p)
	}
	return byLeader, nil
}

// fetchFrom reads from all leaders until one of them fails.
func (s *source) fetchFrom(ctx context.Context, byLeader map[int][]*assigned) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wait sync.WaitGroup
	for _, parts := range byLeader {
		wait.Go(func() {
			for ctx.Err() == nil {
				if err := s.fetchOnce(ctx, parts); err != nil {
					cancel(err)
				}
			}
		})
	}
	wait.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// fetchOnce asks one broker once and passes on what it returns.
func (s *source) fetchOnce(ctx context.Context, parts []*assigned) error {
	f := fetcher{
		cluster: s.cluster, wait: s.cfg.FetchMaxWait.D(), maxBytes: int(s.cfg.FetchMaxBytes),
		committed: s.cfg.IsolationLevel == "read_committed",
	}
	spots := make([]*spot, len(parts))
	for i, p := range parts {
		spots[i] = p.spot
	}
	// The broker fills an answer from the front: whoever was first is last now.
	first := parts[0]
	copy(parts, parts[1:])
	parts[len(parts)-1] = first

	var chunks []*chunk
	err := f.read(ctx, spots, func(sp *spot, r *protocol.Record) error {
		m, err := message(sp, r)
		if err != nil {
			return err
		}
		if n := len(chunks); n == 0 || chunks[n-1].part.spot != sp {
			for _, p := range parts {
				if p.spot == sp {
					chunks = append(chunks, &chunk{part: p})
				}
			}
		}
		c := chunks[len(chunks)-1]
		c.messages = append(c.messages, m)
		c.offsets = append(c.offsets, r.Offset)
		return nil
	})
	for i, c := range chunks {
		select {
		case s.chunks <- c:
		case <-ctx.Done():
			for _, c := range chunks[i:] {
				// Another leader may have to be asked, in the same generation.
				c.part.spot.offset = min(c.part.spot.offset, c.offsets[0])
			}
			return nil
		}
	}
	var one *spotError
	if errors.As(err, &one) && one.code == kafka.OffsetOutOfRange {
		return s.skipLost(ctx, one.spot)
	}
	if err != nil {
		return classify(err)
	}
	return nil
}

// skipLost goes on at the oldest record that there is, when retention or a new
// topic of the same name has taken the place where the group was.
func (s *source) skipLost(ctx context.Context, sp *spot) error {
	offsets, err := s.cluster.offsets(ctx, sp.topic, sp.partition+1, kafka.FirstOffset)
	if err != nil {
		return err
	}
	s.env.Logger.ErrorContext(ctx, "the group's position is not in the partition any more; going on at its oldest record",
		"topic", sp.topic, "partition", sp.partition, "position", sp.offset, "oldest", offsets[sp.partition])
	sp.offset = offsets[sp.partition]
	return nil
}

// drain waits until what was handed out is settled and committed.
func (s *source) drain(ctx context.Context, g *generation) {
	// No heartbeat is sent in this time, so it must end well within the session.
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SessionTimeout.D()/3)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.settled.Broadcast()
	})()
	s.mu.Lock()
	defer s.mu.Unlock()
	g.ending = true
	for ctx.Err() == nil {
		open := false
		for _, p := range g.parts {
			open = open || p.open() > 0 || p.committed < p.position
		}
		if !open {
			return
		}
		s.settled.Wait()
	}
}

var _ relay.Source = (*source)(nil)
