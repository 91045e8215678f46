package sqsrelay

import (
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// classify marks err by the table in the package's documentation. What is not in
// it is transient.
func (q *queue) classify(err error) error {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return err
	}
	return q.mark(err, api.ErrorCode())
}

// entryError is the error of one entry of a batch.
func (q *queue) entryError(e *types.BatchResultErrorEntry) error {
	code := text(e.Code)
	err := fmt.Errorf("%s: %s", code, text(e.Message))
	marked := q.mark(err, code)
	if e.SenderFault && !relay.IsFatal(marked) {
		return relay.Permanent(err)
	}
	return marked
}

func (q *queue) mark(err error, code string) error {
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
		"KMS.AccessDeniedException", "KMS.DisabledException", "KMS.InvalidKeyUsageException", "KMS.InvalidStateException", "KMS.NotFoundException", "KMS.OptInRequired":
		return relay.Fatal(err)
	case "ExpiredToken", "ExpiredTokenException":
		if q.cfg.SessionToken != "" && q.cfg.RoleARN == "" {
			return relay.Fatal(err) // nobody will renew it
		}
	}
	return err
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
