package rabbitmqrelay

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	relaytest.Refusals(t, refusals, func(answer string, ofRow bool) error {
		code, reason, _ := strings.Cut(answer, " ")
		n, err := strconv.Atoi(code)
		if err != nil || answer == unroutable {
			return refusals.Classify(errors.New(answer), answer, ofRow)
		}
		return classifyFor(fmt.Errorf("publish: %w", &amqp.Error{Code: n, Reason: reason, Server: true}), ofRow)
	})
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err   *amqp.Error
		fatal bool
		limit int
	}{
		"no queue":           {err: &amqp.Error{Code: 404, Reason: "NOT_FOUND - no queue 'q' in vhost '/'"}, fatal: true},
		"queue's node down":  {err: &amqp.Error{Code: 404, Reason: "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor, is down or inaccessible"}},
		"credentials":        {err: &amqp.Error{Code: 403, Reason: "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN"}, fatal: true},
		"declared otherwise": {err: &amqp.Error{Code: 406, Reason: "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'e'"}, fatal: true},
		"slow consumer":      {err: &amqp.Error{Code: 406, Reason: "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms"}},
		"acknowledged twice": {err: &amqp.Error{Code: 406, Reason: "PRECONDITION_FAILED - unknown delivery tag 5"}},
		"too large":          {err: &amqp.Error{Code: 406, Reason: "PRECONDITION_FAILED - message size 135266304 is larger than configured max size 134217728"}, limit: 134217728},
		"too large, of old":  {err: &amqp.Error{Code: 406, Reason: "PRECONDITION_FAILED - message size 11 larger than max size 10"}, limit: 10},
		"virtual host":       {err: &amqp.Error{Code: 530, Reason: "NOT_ALLOWED - vhost v not found"}, fatal: true},
		"too many":           {err: &amqp.Error{Code: 530, Reason: "NOT_ALLOWED - access to vhost '/' refused for user 'u': connection limit (1) is reached"}},
		"exchange type":      {err: &amqp.Error{Code: 503, Reason: "COMMAND_INVALID - unknown exchange type 'x'"}, fatal: true},
		"shutdown":           {err: &amqp.Error{Code: 320, Reason: "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"}},
		"locked":             {err: &amqp.Error{Code: 405, Reason: "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue"}},
		"internal":           {err: &amqp.Error{Code: 541, Reason: "INTERNAL_ERROR"}},
	} {
		tc.err.Server = true
		err := fmt.Errorf("publish: %w", tc.err)
		if got := classify(err); relay.IsFatal(got) != tc.fatal || relay.IsPermanent(got) {
			t.Errorf("%s: classify(%v) has fatal %t, want %t", name, tc.err, relay.IsFatal(got), tc.fatal)
		}
		if got := tooLarge(err); got != tc.limit {
			t.Errorf("%s: tooLarge(%v) = %d, want %d", name, tc.err, got, tc.limit)
		}
	}
	for reason, want := range map[string]bool{
		"NOT_FOUND - no exchange 'e' in vhost '/'":                                       true,
		"NOT_FOUND - queue 'q' in vhost '/' process is stopped, is down or inaccessible": false,
	} {
		err := explainMissing(&amqp.Error{Code: 404, Reason: reason, Server: true})
		if got := strings.Contains(err.Error(), "set rabbitmq_create_if_missing to true"); got != want || relay.IsFatal(classify(err)) != want {
			t.Errorf("%s: %v has the cure %t, want %t", reason, err, got, want)
		}
	}
	// The client's own guess at why a handshake broke is only a guess.
	if relay.IsFatal(classify(amqp.ErrCredentials)) || !relay.IsFatal(classify(amqp.ErrSASL)) {
		t.Error("a dropped handshake must be transient, and no common mechanism fatal")
	}
}

// TestSilentPeer: the error of a peer that does not answer names the timeout and the key.
func TestSilentPeer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, err = Backend().Sink.New(t.Context(), testEnv(t), fmt.Appendf(nil, `{"url":"amqp://%s","timeout":"300ms"}`, listener.Addr()))
	if want := "no answer within 300ms; check host, port and rabbitmq_tls"; err == nil || relay.IsFatal(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("Sink.New = %v, want a transient error with %q", err, want)
	}
}
