package sqsrelay

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// A deduplication id holds for five minutes of one queue; SQS's own id holds for ever.
func TestIDsOfOtherProducers(t *testing.T) {
	in := types.Message{
		MessageId: aws.String("uuid"), Body: aws.String("{}"),
		Attributes: map[string]string{"MessageDeduplicationId": "1", "MessageGroupId": "g"},
	}
	ours := in
	ours.MessageAttributes = map[string]types.MessageAttributeValue{attrDedupKey: {StringValue: aws.String("outbox_orders:1:0")}}
	for _, tc := range []struct {
		scope bool
		in    types.Message
		want  string
	}{{true, in, "uuid"}, {false, in, "g 1"}, {true, ours, "outbox_orders:1:0"}} {
		s := &source{env: relay.Env{ScopeIDs: tc.scope}}
		if m := s.message(&tc.in); m.ID != tc.want {
			t.Errorf("scope %t: id %q, want %q", tc.scope, m.ID, tc.want)
		}
	}
}
