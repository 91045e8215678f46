package kafkarelay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Values of the key tombstones.
const (
	tombstonesAlways = "always"
	tombstonesNever  = "never"
)

// policy is whether a topic is compacted, as it was when the sink asked last.
type policy struct {
	compacted bool
	asked     time.Time
}

// policyFor is how long a topic's policy is taken for known.
const policyFor = time.Minute

// Tombstones implements [relay.Tombstoner]: by the key tombstones, and with auto by the
// topic's cleanup.policy.
func (s *sink) Tombstones(ctx context.Context, m *relay.Message) (bool, error) {
	switch s.cfg.Tombstones {
	case tombstonesAlways:
		return true, nil
	case tombstonesNever:
		return false, nil
	}
	t, err := s.topicOf(ctx, m)
	switch {
	case relay.IsPermanent(err):
		return true, nil
	case err != nil:
		return false, err
	}
	if time.Since(t.policy.asked) < policyFor {
		return t.policy.compacted, nil
	}
	compacted, err := s.compacted(ctx, t.name)
	switch {
	case denied(err):
		s.env.Logger.WarnContext(ctx, "topic's policy may not be read", "topic", t.name, "err", err,
			"effect", "no tombstones are written", "cure", cureDenied)
	case err != nil:
		s.cluster.reset()
		return false, err
	}
	t.policy = policy{compacted, time.Now()}
	return compacted, nil
}

// compacted reports whether the topic drops all but the last record of a key.
func (s *sink) compacted(ctx context.Context, topic string) (bool, error) {
	value, err := s.topicSetting(ctx, topic, "cleanup.policy")
	return slices.Contains(strings.Split(value, ","), "compact"), err
}

const cureDenied = "allow DescribeConfigs on it, or set kafka_tombstones to always or never"

// denied reports whether err is that a topic's settings may not be read.
func denied(err error) bool {
	return errors.Is(err, kafka.TopicAuthorizationFailed) || errors.Is(err, kafka.ClusterAuthorizationFailed)
}

// Notes implements [relay.Noter]: what becomes of keys that have ended.
func (s *sink) Notes(ctx context.Context) []string {
	if s.fixed == nil || s.cfg.Tombstones == tombstonesAlways {
		return nil
	}
	name := s.fixed.name
	compacted, err := s.compacted(ctx, name)
	switch {
	case s.cfg.Tombstones == tombstonesNever && compacted:
		return []string{fmt.Sprintf("WARNING: topic %q is compacted, but deleted keys stay in it; set kafka_tombstones to auto", name)}
	case s.cfg.Tombstones == tombstonesNever:
		return nil
	case err != nil:
		return []string{fmt.Sprintf("WARNING: no tombstones are written: %s; %s", err, cureDenied)}
	case compacted:
		return []string{fmt.Sprintf("writes a tombstone where a key has ended: topic %q is compacted", name)}
	}
	return []string{fmt.Sprintf("writes no tombstones: topic %q is not compacted", name)}
}
