package kafkarelay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// generation is the group between two rebalances. The source's mutex guards ending and
// what the partitions have acknowledged.
type generation struct {
	*kafka.Generation
	parts  []*assigned
	ending bool // Receive returns no more of its messages
	ended  chan struct{}
}

// assigned is a partition that a generation assigns to this member.
type assigned struct {
	spot       *spot
	generation *generation
	acks       relay.Acks[int64]
	position   int64 // all messages before it are settled
	committed  int64
}

func (g *generation) over() bool {
	select {
	case <-g.ended:
		return true
	default:
		return false
	}
}

// run is a member of the group until ctx ends.
func (s *source) run(ctx context.Context) {
	defer close(s.done)
	defer s.cluster.reset()
	for ctx.Err() == nil {
		gen, err := s.group.Next(ctx)
		if err != nil {
			s.report(ctx, classify(fmt.Errorf("join group %q: %w", s.cfg.GroupID, err)))
			continue
		}
		g := &generation{Generation: gen, ended: make(chan struct{})}
		// The group waits for this function before it joins the next generation. Closing
		// the group ends the generation.
		gen.Start(func(until context.Context) { s.serve(ctx, until, g) })
		select {
		case <-g.ended:
		case <-ctx.Done():
		}
	}
	s.leave()
}

// leaveTimeout bounds the end of the group, and then the request that leaves it.
const leaveTimeout = time.Second

// leave closes the group. The client waits for the broker's answer even if the group has
// ended, for example while the group rebalances, so leave disconnects it.
func (s *source) leave() {
	defer s.cluster.net.Close()
	defer time.AfterFunc(leaveTimeout, s.cluster.net.Cut).Stop()
	defer time.AfterFunc(2*leaveTimeout, s.cluster.net.Close).Stop()
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

// serve reads g's partitions until the generation ends. Then it waits until received
// messages are settled, so that the next owner does not receive them again.
func (s *source) serve(ctx, until context.Context, g *generation) {
	defer close(g.ended)
	work, cancel := context.WithCancel(ctx) // ends with either context
	defer cancel()
	defer context.AfterFunc(until, cancel)()
	if err := s.take(work, g); err != nil {
		s.report(work, err)
	} else {
		s.fetch(work, g)
	}
	s.drain(ctx, g)
}

// take finds the offset at which to begin in each partition.
func (s *source) take(ctx context.Context, g *generation) error {
	lives, err := s.meet(ctx)
	if err != nil {
		return err
	}
	fresh := make(map[string]map[int]int64)
	for topic, parts := range g.Assignments {
		life := lives[topic]
		if !life.Pending {
			again, err := s.beyond(ctx, topic, parts)
			if err != nil {
				return err
			}
			if again != nil {
				life = *again
			}
		}
		if life.Pending {
			for i := range parts {
				parts[i].Offset = kafka.FirstOffset
			}
		}
		var first []int64
		if slices.ContainsFunc(parts, func(a kafka.PartitionAssignment) bool { return a.Offset < 0 }) {
			if first, err = s.begin(ctx, topic, parts, life.Pending); err != nil {
				return err
			}
			fresh[topic] = make(map[int]int64)
		}
		for _, a := range parts {
			p := &assigned{generation: g}
			p.spot = &spot{place: place{topic, a.ID}, offset: a.Offset, part: p, scope: life.Scope()}
			if a.Offset < 0 {
				p.spot.offset = first[a.ID]
				fresh[topic][a.ID] = p.spot.offset
			}
			p.position, p.committed = p.spot.offset, p.spot.offset
			g.parts = append(g.parts, p)
		}
	}
	// A chosen position must not be chosen again: "latest" would be a later one, behind
	// messages that were never received.
	if len(fresh) > 0 {
		if err := g.CommitOffsets(fresh); err != nil {
			return classify(fmt.Errorf("commit the first position of group %q: %w", g.GroupID, err))
		}
	}
	for topic := range fresh {
		if err := s.farEnds.Began(ctx, topic); err != nil {
			return err
		}
	}
	return nil
}

// begin returns the offsets at which to begin in partitions without a position. The
// client takes an error of the coordinator for a missing position, so begin asks again.
// With again it returns the first offsets, whatever the group's position.
func (s *source) begin(ctx context.Context, topic string, parts []kafka.PartitionAssignment, again bool) ([]int64, error) {
	ids := make([]int, 0, len(parts))
	partitions := 0
	for _, a := range parts {
		ids = append(ids, a.ID)
		partitions = max(partitions, a.ID+1)
	}
	res, err := s.cluster.client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: s.cfg.GroupID, Topics: map[string][]int{topic: ids}})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		s.cluster.reset()
		return nil, classify(fmt.Errorf("look up the position of group %q: %w", s.cfg.GroupID, err))
	}
	which := kafka.FirstOffset
	if s.cfg.AutoOffsetReset == "latest" && !again {
		which = kafka.LastOffset
	}
	offsets, err := patiently(ctx, func() ([]int64, error) { return s.cluster.offsets(ctx, topic, partitions, which) })
	if err != nil {
		return nil, err
	}
	for _, p := range res.Topics[topic] {
		if p.Error != nil {
			return nil, classify(fmt.Errorf("look up the position of partition %d of topic %q: %w", p.Partition, topic, p.Error))
		}
		if p.CommittedOffset >= 0 && !again && p.Partition < partitions {
			offsets[p.Partition] = p.CommittedOffset
		}
	}
	return offsets, nil
}

// fetch reads g's partitions from their leaders. After an error it looks the leaders up
// again.
func (s *source) fetch(ctx context.Context, g *generation) {
	if len(g.parts) == 0 {
		<-ctx.Done() // there are more members than partitions
	}
	for ctx.Err() == nil {
		err := s.recheck(ctx, g)
		if err == nil {
			err = s.fetchFrom(ctx, g)
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
	leader := make(map[place]int)
	for _, t := range res.Topics {
		for _, p := range t.Partitions {
			if p.Error == nil {
				leader[place{t.Name, p.ID}] = p.Leader.ID
			}
		}
	}
	byLeader := make(map[int][]*assigned)
	for _, p := range g.parts {
		id, ok := leader[p.spot.place]
		if !ok {
			return nil, fmt.Errorf("partition %d of topic %q has no leader", p.spot.partition, p.spot.topic)
		}
		byLeader[id] = append(byLeader[id], p)
	}
	return byLeader, nil
}

// recheckEvery is how long a topic that was created again can go unnoticed while its
// fetches succeed. What was received meanwhile is received again, with other ids.
const recheckEvery = 30 * time.Second

// fetchFrom reads from all leaders until one of them fails.
func (s *source) fetchFrom(ctx context.Context, g *generation) error {
	byLeader, err := s.leaders(ctx, g)
	if err != nil {
		return err
	}
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
	wait.Go(func() {
		for backoff.Sleep(ctx, recheckEvery) == nil {
			if err := s.recheck(ctx, g); err != nil {
				cancel(err)
			}
		}
	})
	wait.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// fetchOnce sends one request to one broker and passes its records on.
func (s *source) fetchOnce(ctx context.Context, parts []*assigned) error {
	f := fetcher{
		cluster: s.cluster, wait: s.cfg.FetchMaxWait.D(), maxBytes: int(s.cfg.FetchMaxBytes),
		committed: s.cfg.IsolationLevel == "read_committed",
	}
	spots := make([]*spot, len(parts))
	for i, p := range parts {
		spots[i] = p.spot
	}
	// The broker fills an answer from the front, so the first partition becomes the last.
	first := parts[0]
	copy(parts, parts[1:])
	parts[len(parts)-1] = first

	var chunks []*chunk
	err := f.read(ctx, spots, func(sp *spot, r *protocol.Record) error {
		if r.Value == nil && s.cfg.OnTombstone == "skip" {
			return nil
		}
		m, err := message(sp, r)
		if err != nil {
			return err
		}
		if n := len(chunks); n == 0 || chunks[n-1].part.spot != sp {
			chunks = append(chunks, &chunk{part: sp.part})
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
				// The same generation may read them from another leader.
				c.part.spot.offset = min(c.part.spot.offset, c.offsets[0])
			}
			return nil
		}
	}
	one, _ := errors.AsType[*spotError](err)
	switch {
	case one != nil && one.code == kafka.OffsetOutOfRange:
		return s.skipLost(ctx, one.spot)
	case relaynet.IsTooLarge(err) && len(parts) > 1:
		return s.fetchEach(ctx, parts)
	case relaynet.IsTooLarge(err):
		sp := parts[0].spot
		err = fmt.Errorf("read partition %d of topic %q at offset %d: %w", sp.partition, sp.topic, sp.offset, err)
	}
	return classify(err)
}

// fetchEach reads parts one by one, after their answer was too large. A broker returns a
// batch of records whole, and the answer does not name the partition.
func (s *source) fetchEach(ctx context.Context, parts []*assigned) error {
	for _, p := range slices.Clone(parts) {
		if err := s.fetchOnce(ctx, []*assigned{p}); err != nil {
			return err
		}
	}
	return nil
}

// skipLost continues at the oldest record, because retention has removed the group's
// position. It fails if the topic was created again, or ends before the position.
func (s *source) skipLost(ctx context.Context, sp *spot) error {
	if err := s.recheck(ctx, sp.part.generation); err != nil {
		return err
	}
	again, err := s.beyond(ctx, sp.topic, []kafka.PartitionAssignment{{ID: sp.partition, Offset: sp.offset}})
	if err != nil {
		return err
	}
	if again != nil {
		return beginAgain(sp.topic)
	}
	offsets, err := s.cluster.offsets(ctx, sp.topic, sp.partition+1, kafka.FirstOffset)
	if err != nil {
		return err
	}
	oldest := offsets[sp.partition]
	if oldest <= sp.offset { // the broker has it by now
		return fmt.Errorf("read partition %d of topic %q: offset %d was out of range; trying again", sp.partition, sp.topic, sp.offset)
	}
	err = s.farEnds.Missed(ctx, sp.topic, oldest-sp.offset, "position lost; reading oldest record", "topic", sp.topic,
		"partition", sp.partition, "position", sp.offset, "oldest", oldest, "messages", oldest-sp.offset)
	if err != nil {
		return err
	}
	sp.offset = oldest
	return nil
}

// drain waits until received messages are settled and committed.
func (s *source) drain(ctx context.Context, g *generation) {
	// The client sends no heartbeat meanwhile, so this must end within the session.
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
			open = open || p.acks.Open() > 0 || p.committed < p.position
		}
		if !open {
			return
		}
		s.settled.Wait()
	}
}
