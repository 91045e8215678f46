package kafkarelay

import (
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// refusals are the error codes of Kafka that are not transient, and those that an
// operator is likely to see. A code below 10 has a zero in front.
var refusals = relay.Refusals{
	{Kind: relay.KindTooLarge, Blame: relay.BlameMessage, Answer: "10|18", Note: "message.max.bytes, max.message.bytes, segment.bytes"},
	{Kind: relay.KindInvalid, Blame: relay.BlameMessage, Answer: "87|32", Note: "no key in a compacted topic; a timestamp"},
	{Kind: relay.KindBadName, Blame: relay.BlameMessage, Answer: "17", Note: "letters, digits, dot, dash and underscore are allowed"},
	{Kind: relay.KindMissing, Blame: relay.BlameDestination, Answer: noTopic, Note: "the relay asks several times before"},
	{Kind: relay.KindMissing, Blame: relay.BlameNothing, Answer: "03", Note: "of a request: the relay looks the topic up again"},
	{Kind: relay.KindDenied, Blame: relay.BlameDestination, Answer: "29", Note: "to write to, describe or create the topic"},
	{Kind: relay.KindWrongType, Blame: relay.BlameDestination, Answer: "44", Note: "a policy of the brokers refuses the topic"},
	{Kind: relay.KindFull, Blame: relay.BlameNothing, Answer: "56|57|89", Note: "disk, quota"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "05|06|07|08|09|13|14|15|16|19|20|41|72|74|75", Note: "leaders"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "45|47|49|59|90", Note: "the relay gets new sequence numbers"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "30|31|33|34|53|54|58", Note: "group, cluster, transactional id, SASL"},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "21|35|43|76", Note: "acks, version, compression"},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "37|38|40", Note: "partitions, replicas, settings of a topic to create"},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "23|24|26", Note: "the consumer group"},
}

// noTopic is the answer of a cluster that does not know a topic for some time.
const noTopic = "03, several times"

// classify marks err by the table, where the configuration names the topic.
func classify(err error) error { return classifyFor(err, false) }

func classifyFor(err error, ofRow bool) error {
	if code, ok := errors.AsType[kafka.Error](err); ok {
		if code == kafka.IllegalSASLState {
			err = fmt.Errorf("%w; leave out kafka_sasl_mechanism, or give the port of a listener with SASL", err)
		}
		return refusals.Classify(err, fmt.Sprintf("%02d", int(code)), ofRow)
	}
	return relaynet.Classify("kafka", err)
}

// refusedBeforeAppend are the errors with which a broker refuses a batch without
// writing it. After any other error the broker may have the batch.
var refusedBeforeAppend = []kafka.Error{
	kafka.InvalidMessage, kafka.MessageSizeTooLarge, kafka.RecordListTooLarge, kafka.InvalidRecord, kafka.InvalidTimestamp,
	kafka.InvalidTopic, kafka.NotEnoughReplicas, kafka.TopicAuthorizationFailed, kafka.ClusterAuthorizationFailed,
	kafka.InvalidRequiredAcks, kafka.UnsupportedVersion, kafka.UnsupportedForMessageFormat, kafka.UnsupportedCompressionType,
	kafka.PolicyViolation, kafka.SecurityDisabled, kafka.ThrottlingQuotaExceeded,
}

// sequenceLost are the errors after which the broker expects other numbers than the
// sink's.
var sequenceLost = []kafka.Error{
	kafka.OutOfOrderSequenceNumber, kafka.UnknownProducerId, kafka.InvalidProducerEpoch, kafka.ProducerFenced,
	kafka.InvalidProducerIDMapping,
}
