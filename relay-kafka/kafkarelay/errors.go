package kafkarelay

import (
	"errors"
	"slices"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

var (
	errClosed       = errors.New("the sink is closed")
	errSourceClosed = errors.New("the source is closed")
)

// permanent and fatal classify Kafka's errors; all others are transient.
var (
	permanent = []kafka.Error{
		kafka.MessageSizeTooLarge, kafka.RecordListTooLarge, kafka.InvalidRecord, kafka.InvalidTimestamp, kafka.InvalidTopic,
	}
	fatal = []kafka.Error{
		kafka.TopicAuthorizationFailed, kafka.GroupAuthorizationFailed, kafka.ClusterAuthorizationFailed,
		kafka.TransactionalIDAuthorizationFailed, kafka.SASLAuthenticationFailed, kafka.UnsupportedSASLMechanism,
		kafka.IllegalSASLState, kafka.SecurityDisabled, kafka.InvalidRequiredAcks, kafka.UnsupportedVersion,
		kafka.UnsupportedForMessageFormat, kafka.UnsupportedCompressionType, kafka.InvalidPartitionNumber,
		kafka.InvalidReplicationFactor, kafka.InvalidConfiguration, kafka.PolicyViolation,
		kafka.InconsistentGroupProtocol, kafka.InvalidGroupId, kafka.InvalidSessionTimeout,
	}
)

// classify gives err the class of the table in the package's documentation.
func classify(err error) error {
	var code kafka.Error
	var wrong *relaynet.WrongPeerError
	switch {
	case errors.As(err, &wrong):
		return relay.Fatal(err)
	case !errors.As(err, &code):
		if untrusted := relaynet.Untrusted(err); untrusted != nil {
			return untrusted
		}
	case slices.Contains(permanent, code):
		return relay.Permanent(err)
	case slices.Contains(fatal, code):
		return relay.Fatal(err)
	}
	return err
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
