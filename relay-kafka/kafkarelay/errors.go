package kafkarelay

import (
	"crypto/tls"
	"crypto/x509"
	"errors"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// classify marks err by the table in the package's documentation. What is in
// neither list is transient: a broker that is away comes back.
func classify(err error) error {
	var code kafka.Error
	if errors.As(err, &code) {
		switch code { //nolint:exhaustive // the rest is transient
		case kafka.MessageSizeTooLarge, kafka.RecordListTooLarge, kafka.InvalidRecord, kafka.InvalidTimestamp, kafka.InvalidTopic:
			return relay.Permanent(err)
		case kafka.TopicAuthorizationFailed, kafka.GroupAuthorizationFailed, kafka.ClusterAuthorizationFailed, kafka.TransactionalIDAuthorizationFailed,
			kafka.SASLAuthenticationFailed, kafka.UnsupportedSASLMechanism, kafka.IllegalSASLState, kafka.SecurityDisabled,
			kafka.InvalidRequiredAcks, kafka.UnsupportedVersion, kafka.UnsupportedForMessageFormat, kafka.UnsupportedCompressionType,
			kafka.InvalidPartitionNumber, kafka.InvalidReplicationFactor, kafka.InvalidConfiguration, kafka.PolicyViolation,
			kafka.InconsistentGroupProtocol, kafka.InvalidGroupId, kafka.InvalidSessionTimeout:
			return relay.Fatal(err)
		}
		return err
	}
	if untrusted(err) {
		return relay.Fatal(err)
	}
	return err
}

// untrusted reports whether err says that one side refused the other's
// certificate.
func untrusted(err error) bool {
	var (
		verification *tls.CertificateVerificationError
		authority    x509.UnknownAuthorityError
		hostname     x509.HostnameError
		invalid      x509.CertificateInvalidError
		alert        tls.AlertError
	)
	return errors.As(err, &verification) || errors.As(err, &authority) || errors.As(err, &hostname) ||
		errors.As(err, &invalid) || errors.As(err, &alert)
}

// refusedBeforeAppend reports whether code says that a broker refused a batch
// without having written it. Any other error leaves that open.
func refusedBeforeAppend(code kafka.Error) bool {
	switch code { //nolint:exhaustive // the rest leaves it open
	case kafka.InvalidMessage, kafka.MessageSizeTooLarge, kafka.RecordListTooLarge, kafka.InvalidRecord, kafka.InvalidTimestamp,
		kafka.InvalidTopic, kafka.NotEnoughReplicas, kafka.TopicAuthorizationFailed, kafka.ClusterAuthorizationFailed,
		kafka.InvalidRequiredAcks, kafka.UnsupportedVersion, kafka.UnsupportedForMessageFormat, kafka.UnsupportedCompressionType,
		kafka.PolicyViolation, kafka.SecurityDisabled, kafka.ThrottlingQuotaExceeded:
		return true
	}
	return false
}

// sequenceLost reports whether code says that the broker's memory of our
// numbered batches and our own no longer agree.
func sequenceLost(code kafka.Error) bool {
	switch code { //nolint:exhaustive // the rest is about something else
	case kafka.OutOfOrderSequenceNumber, kafka.UnknownProducerId, kafka.InvalidProducerEpoch, kafka.ProducerFenced, kafka.InvalidProducerIDMapping:
		return true
	}
	return false
}
