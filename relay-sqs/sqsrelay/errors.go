package sqsrelay

import (
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var (
	errFull       = errors.New("the request is full")
	errUnanswered = errors.New("the answer of SQS leaves the message out")
)

// refusals are the error codes of SQS, without the prefix of older protocols. The queue
// is always that of the configuration.
var refusals = relay.Refusals{
	{Kind: relay.KindTooLarge, Blame: relay.BlameMessage, Answer: "BatchRequestTooLong|MessageTooLong"},
	{Kind: relay.KindInvalid, Blame: relay.BlameMessage, Answer: "InvalidMessageContents", Note: "empty, not UTF-8, or not allowed in XML"},
	{Kind: relay.KindInvalid, Blame: relay.BlameMessage, Answer: "InvalidParameterValue*|InvalidAttribute*|MissingParameter"},
	{Kind: relay.KindInvalid, Blame: relay.BlameMessage, Answer: senderFault, Note: "of an entry, with any code that is not listed"},
	{Kind: relay.KindBadName, Blame: relay.BlamePipeline, Answer: "InvalidAddress", Note: "queue_url"},
	{Kind: relay.KindMissing, Blame: relay.BlamePipeline, Answer: "NonExistentQueue|QueueDoesNotExist"},
	{Kind: relay.KindMissing, Blame: relay.BlameNothing, Answer: "QueueDeletedRecently"},
	{Kind: relay.KindDenied, Blame: relay.BlamePipeline, Answer: "AccessDenied*"},
	{Kind: relay.KindWrongType, Note: "the name of a queue shows whether it is FIFO"},
	{Kind: relay.KindFull, Blame: relay.BlameNothing, Answer: "OverLimit|*Throttl*"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "Internal*|ServiceUnavailable|RequestTimeout*"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "ExpiredToken*" + ofStatic, Note: "nothing renews it"},
	{Kind: relay.KindCredentials, Blame: relay.BlameNothing, Answer: "ExpiredToken*"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "InvalidClientTokenId|UnrecognizedClient*|SignatureDoesNotMatch"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "InvalidAccessKeyId|InvalidSecurity|MissingAuthentication*|OptIn*"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "Kms*|KMS.*", Note: "the key of the queue"},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "UnsupportedOperation|InvalidAction"},
}

const (
	senderFault = "SenderFault"
	ofStatic    = " of a static session_token"
)

// classify marks err by the table.
func (q *queue) classify(err error) error {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return peer.Explain(err)
	}
	return refusals.Classify(err, q.answer(api.ErrorCode()), false)
}

// entryError is the error of one entry of a batch. The sender is at fault for a throttled
// entry too, so a code that is listed counts first.
func (q *queue) entryError(e *types.BatchResultErrorEntry) error {
	answer := q.answer(aws.ToString(e.Code))
	if e.SenderFault && refusals.Find(answer).Answer == "" {
		answer = senderFault
	}
	return refusals.Classify(fmt.Errorf("%s: %s", aws.ToString(e.Code), aws.ToString(e.Message)), answer, false)
}

// answer returns a code as the table has it.
func (q *queue) answer(code string) string {
	code = strings.TrimPrefix(code, "AWS.SimpleQueueService.")
	if strings.HasPrefix(code, "ExpiredToken") && q.cfg.SessionToken != "" && q.cfg.RoleARN == "" {
		code += ofStatic
	}
	return code
}
