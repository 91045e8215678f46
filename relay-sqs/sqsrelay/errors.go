package sqsrelay

import (
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

var (
	errClosed     = errors.New("the sink is closed")
	errFull       = errors.New("the request is full")
	errUnanswered = errors.New("the answer of SQS leaves the message out")
)

// classify marks err by the table in the package's documentation. Every
// other error is transient.
func (q *queue) classify(err error) error {
	err = peer.Explain(err)
	if _, wrong := errors.AsType[*relaynet.WrongPeerError](err); wrong {
		return relay.Fatal(err)
	}
	var api smithy.APIError
	if !errors.As(err, &api) {
		return err
	}
	return q.classifyCode(err, api.ErrorCode())
}

// entryError is the error of one entry of a batch.
func (q *queue) entryError(e *types.BatchResultErrorEntry) error {
	code := aws.ToString(e.Code)
	err := fmt.Errorf("%s: %s", code, aws.ToString(e.Message))
	classified := q.classifyCode(err, code)
	if e.SenderFault && !relay.IsFatal(classified) {
		return relay.Permanent(err)
	}
	return classified
}

func (q *queue) classifyCode(err error, code string) error {
	// Old and new protocols spell some codes with and without a prefix.
	code = strings.TrimPrefix(code, "AWS.SimpleQueueService.")
	switch code {
	case "InvalidMessageContents", "InvalidParameterValue", "InvalidParameterValueException", "InvalidAttributeValue", "InvalidAttributeName",
		"MissingParameter", "BatchRequestTooLong", "MessageTooLong":
		return relay.Permanent(err)
	case "NonExistentQueue", "QueueDoesNotExist",
		"AccessDenied", "AccessDeniedException", "InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch",
		"InvalidAccessKeyId", "InvalidSecurity", "MissingAuthenticationToken", "MissingAuthenticationTokenException", "OptInRequired",
		"InvalidAddress", "UnsupportedOperation", "InvalidAction",
		"KmsAccessDenied", "KmsDisabled", "KmsInvalidKeyUsage", "KmsInvalidState", "KmsNotFound", "KmsOptInRequired",
		"KMS.AccessDeniedException", "KMS.DisabledException", "KMS.InvalidKeyUsageException", "KMS.InvalidStateException",
		"KMS.NotFoundException", "KMS.OptInRequired":
		return relay.Fatal(err)
	case "ExpiredToken", "ExpiredTokenException":
		if q.cfg.SessionToken != "" && q.cfg.RoleARN == "" {
			return relay.Fatal(err) // nothing renews it
		}
	}
	return err
}
