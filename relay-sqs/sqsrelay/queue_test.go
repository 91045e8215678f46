package sqsrelay

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// What does not fit into ten attributes, and what SQS refuses as an attribute, comes
// back. So do a key and an id that SQS refuses for its own ids.
func TestRoundTrip(t *testing.T) {
	endpoint := relaytest.Endpoint(t, endpointEnv)
	for _, suffix := range []string{"", ".fifo"} {
		url := newQueue(t, endpoint, suffix)
		want := relaytest.Message(1, "key with spaces, Zürich")
		want.ID = strings.Repeat("long id ", 30)
		want.FullRefresh = true
		for i := range 8 {
			want.Headers = append(want.Headers, relay.Header{Name: fmt.Sprintf("x-%d", i), Value: fmt.Sprint(i)})
		}
		want.Headers = append(want.Headers, relay.Header{Name: "x empty", Value: ""}, relay.Header{Name: "aws.x", Value: "a\x01b"})
		if err := openSink(t, url, nil).Publish(t.Context(), []relay.Message{want, relaytest.Message(2, "")}); err != nil {
			t.Fatalf("Publish = %v", err)
		}
		src := openSource(t, url, map[string]any{"wait_time_seconds": 1, "concurrency": 1})
		byID := make(map[string]relay.Message)
		for len(byID) < 2 {
			got, err := src.Receive(t.Context(), 10)
			if err != nil {
				t.Fatalf("Receive = %v", err)
			}
			for i := range got {
				byID[got[i].ID] = got[i]
			}
		}
		got := byID[want.ID]
		if got.Key != want.Key || got.Op != want.Op || got.Subject != want.Subject || got.OutboxID != 1 || !got.FullRefresh || got.ContentType != want.ContentType {
			t.Errorf("received %+v, want %+v", got, want)
		}
		for _, h := range want.Headers {
			if v, ok := got.Header(h.Name); !ok || v != h.Value {
				t.Errorf("header %q came back as %q, %t; want %q", h.Name, v, ok, h.Value)
			}
		}
		if second := byID["outbox_orders:2:0"]; second.Key != "" {
			t.Errorf("a message without key came back with key %q", second.Key)
		}
	}
}

// A message stays hidden for as long as the source has it, well past its
// visibility timeout.
func TestVisibilityIsExtended(t *testing.T) {
	endpoint := relaytest.Endpoint(t, endpointEnv)
	url := newQueue(t, endpoint, "")
	feedRaw(t, endpoint, url, []relay.Message{relaytest.Message(1, "k")})
	src := openSource(t, url, map[string]any{"visibility_timeout": 6, "wait_time_seconds": 0, "max_messages": 1})
	if _, err := src.Receive(t.Context(), 1); err != nil {
		t.Fatalf("Receive = %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
	defer cancel()
	if again, err := src.Receive(ctx, 1); err == nil {
		t.Fatalf("received %q again while it was held", again[0].ID)
	}
}

// A message whose deletion failed, and is not tried again, comes again: else it
// would hold up its group for ever.
func TestFailedAckComesAgain(t *testing.T) {
	endpoint := relaytest.Endpoint(t, endpointEnv)
	url := newQueue(t, endpoint, ".fifo")
	if err := openSink(t, url, nil).Publish(t.Context(), []relay.Message{relaytest.Message(1, "k"), relaytest.Message(2, "k")}); err != nil {
		t.Fatalf("Publish = %v", err)
	}
	src := openSource(t, url, map[string]any{"visibility_timeout": 4, "wait_time_seconds": 1, "max_messages": 1})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first, err := src.Receive(ctx, 1)
	if err != nil {
		t.Fatalf("Receive = %v", err)
	}
	cut, cutOff := context.WithCancel(ctx)
	cutOff()
	if err := src.Ack(cut, first); err == nil {
		t.Fatal("Ack without a connection = nil, want an error")
	}
	for _, want := range []string{"outbox_orders:1:0", "outbox_orders:2:0"} {
		got, err := src.Receive(ctx, 1)
		if err != nil || got[0].ID != want {
			t.Fatalf("Receive = %v, %v; want %s", got, err, want)
		}
		if err := src.Ack(ctx, got); err != nil {
			t.Fatalf("Ack = %v", err)
		}
	}
}

// Close leaves no message hidden, whether the source held it or a request that was out
// received it. The next source has it long before it would be visible.
func TestCloseGivesBack(t *testing.T) {
	endpoint := relaytest.Endpoint(t, endpointEnv)
	const visibility = 120 * time.Second
	for name, tc := range map[string]struct {
		suffix string
		held   bool
	}{
		"held":               {"", true},
		"held of a group":    {".fifo", true},
		"arrives meanwhile":  {"", false},
		"arrives in a group": {".fifo", false},
	} {
		t.Run(name, func(t *testing.T) {
			url := newQueue(t, endpoint, tc.suffix)
			config := map[string]any{"visibility_timeout": visibility / time.Second, "wait_time_seconds": 4}
			src := openSource(t, url, config)
			if tc.held {
				feedRaw(t, endpoint, url, []relay.Message{relaytest.Message(1, "k")})
				if _, err := src.Receive(t.Context(), 1); err != nil {
					t.Fatalf("Receive = %v", err)
				}
			}
			time.Sleep(500 * time.Millisecond) // the requests for more are out
			began := time.Now()
			closed := make(chan error, 1)
			go func() { closed <- src.Close() }()
			if !tc.held {
				time.Sleep(500 * time.Millisecond)
				feedRaw(t, endpoint, url, []relay.Message{relaytest.Message(1, "k")})
			}
			if err := <-closed; err != nil {
				t.Fatalf("Close = %v", err)
			}
			if got, err := openSource(t, url, config).Receive(t.Context(), 1); err != nil || got[0].ID != "outbox_orders:1:0" {
				t.Fatalf("Receive = %v, %v", got, err)
			}
			if took := time.Since(began); took > visibility/4 {
				t.Errorf("the message came %s after Close was called; it stays hidden for %s", took, visibility)
			}
		})
	}
}

// Close is done within a request's wait and its grace, even when the server has gone
// silent.
func TestCloseIsBounded(t *testing.T) {
	t.Parallel()
	asked, silent := make(chan struct{}, 2), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".ReceiveMessage") {
			asked <- struct{}{}
			<-silent
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		fmt.Fprint(w, "{}")
	}))
	defer server.Close()
	defer close(silent)
	src := openSource(t, server.URL+"/000000000000/q", map[string]any{"wait_time_seconds": 1, "concurrency": 1})
	<-asked
	began := time.Now()
	if err := src.Close(); err != nil {
		t.Fatalf("Close = %v", err)
	}
	if took := time.Since(began); took < time.Second || took > 10*time.Second {
		t.Errorf("Close took %v; want about %v", took, time.Second+closeGrace)
	}
}

// Nothing more is sent once a request has failed in a way that stops the pipeline.
func TestStopIsHeeded(t *testing.T) {
	t.Parallel()
	var sent atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".SendMessageBatch") {
			sent.Add(1)
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"__type":"com.amazonaws.sqs#AccessDeniedException"}`)
			return
		}
		fmt.Fprint(w, "{}")
	}))
	defer server.Close()
	var batch []relay.Message
	for i := range 5 * maxEntries {
		batch = append(batch, relaytest.Message(i+1, ""))
	}
	err := openSink(t, server.URL+"/000000000000/q", map[string]any{"concurrency": 1}).Publish(t.Context(), batch)
	if !relay.IsFatal(err) {
		t.Errorf("Publish = %v, want an error that stops the pipeline", err)
	}
	if n := sent.Load(); n != 1 {
		t.Errorf("%d requests were sent, want 1", n)
	}
}

func TestForeignIDs(t *testing.T) {
	endpoint := relaytest.Endpoint(t, endpointEnv)
	url := newQueue(t, endpoint, ".fifo")
	client := rawClient(endpoint)
	body := `{"a":1}`
	var sent []*sqs.SendMessageOutput
	for _, id := range []string{"given", relay.Hash([]byte(body))} {
		out, err := client.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: &url, MessageBody: &body, MessageGroupId: aws.String("g" + id[:1]), MessageDeduplicationId: aws.String(id)})
		if err != nil {
			t.Fatal(err)
		}
		sent = append(sent, out)
	}
	src := openSource(t, url, map[string]any{"wait_time_seconds": 1})
	ids := make(map[string]string)
	for len(ids) < 2 {
		got, err := src.Receive(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		ids[got[0].ID] = got[0].Key
	}
	if ids["gg given"] != "gg" || ids[*sent[1].MessageId] == "" {
		t.Errorf("received ids and keys %v; want the group with the deduplication id that was given, and %s in place of the body's hash", ids, *sent[1].MessageId)
	}
}

// A queue may deduplicate by group (DeduplicationScope=messageGroup), and a
// sender number the messages of each group from 1.
func TestForeignIDsAreUniqueAcrossGroups(t *testing.T) {
	t.Parallel()
	s := &source{}
	message := func(group, id string, attributes map[string]types.MessageAttributeValue) relay.Message {
		return s.message(&types.Message{
			MessageId: aws.String("m"), Body: aws.String("{}"), MessageAttributes: attributes,
			Attributes: map[string]string{"MessageGroupId": group, "MessageDeduplicationId": id},
		})
	}
	a, b := message("a", "1", nil), message("b", "1", nil)
	if a.ID != "a 1" || b.ID != "b 1" || a.Key != "a" {
		t.Errorf("ids of two groups = %q, %q; want one each", a.ID, b.ID)
	}
	ours := map[string]types.MessageAttributeValue{attrDedupKey: {StringValue: aws.String("outbox_orders:5:0")}}
	if m := message("a", "outbox_orders:5:0", ours); m.ID != "outbox_orders:5:0" {
		t.Errorf("id of one of ours = %q, want it as it was sent", m.ID)
	}
}

// message_group_id decides what is ordered.
func TestMessageGroup(t *testing.T) {
	endpoint := relaytest.Endpoint(t, endpointEnv)
	url := newQueue(t, endpoint, ".fifo")
	s := openSink(t, url, map[string]any{"message_group_id": "all of {stream_table}", "concurrency": 8})
	var batch []relay.Message
	for i := range 30 {
		batch = append(batch, relaytest.Message(i+1, fmt.Sprintf("k%d", i)))
	}
	if err := s.Publish(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	for i, m := range readRaw(t, endpoint, url, 30) {
		if m.ID != batch[i].ID {
			t.Fatalf("message %d is %s, want %s: the group has one order", i, m.ID, batch[i].ID)
		}
	}
}

func TestMissingQueue(t *testing.T) {
	endpoint := relaytest.Endpoint(t, endpointEnv)
	raw := queueConfig(endpoint+"/000000000000/no-such-queue", nil)
	if _, err := Backend().Sink.New(t.Context(), testEnv(), raw); !relay.IsFatal(err) {
		t.Errorf("open a sink onto a missing queue = %v, want a fatal error", err)
	}
	if _, err := Backend().Source.New(t.Context(), testEnv(), raw); !relay.IsFatal(err) {
		t.Errorf("open a source at a missing queue = %v, want a fatal error", err)
	}
	raw = queueConfig("http://127.0.0.1:1/000000000000/q", nil)
	if _, err := Backend().Sink.New(t.Context(), testEnv(), raw); err == nil || relay.IsFatal(err) {
		t.Errorf("open a sink onto a server that is away = %v, want a transient error", err)
	}
}

func TestTooLarge(t *testing.T) {
	endpoint := relaytest.Endpoint(t, endpointEnv)
	s := openSink(t, newQueue(t, endpoint, ".fifo"), nil)
	batch := []relay.Message{relaytest.Message(1, "a"), relaytest.Message(2, "b"), relaytest.Message(3, "b"), relaytest.Message(4, "c")}
	batch[1].Body = []byte(strings.Repeat("x", 1<<20))
	err := s.Publish(t.Context(), batch)
	var partial *relay.BatchError
	if !errors.As(err, &partial) || len(partial.Failed) != 2 || !relay.IsPermanent(partial.Failed[1]) || !errors.Is(partial.Failed[2], relay.ErrHeldBack) {
		t.Fatalf("Publish = %v, want message 1 refused for good and 2 held back", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	relaytest.Refusals(t, refusals, func(answer string, _ bool) error {
		if answer == senderFault {
			answer = "SomethingNew"
			return (&queue{cfg: new(connConfig)}).entryError(&types.BatchResultErrorEntry{Code: &answer, SenderFault: true})
		}
		code, static := strings.CutSuffix(answer, ofStatic)
		q := &queue{cfg: new(connConfig)}
		if static {
			q.cfg.SessionToken = "static"
		}
		return q.classify(&smithy.GenericAPIError{Code: code})
	})
}

func TestErrorClasses(t *testing.T) {
	t.Parallel()
	q := &queue{cfg: &connConfig{SessionToken: "static"}}
	for name, tc := range map[string]struct {
		code   string
		sender bool
		want   string
	}{
		"contents":           {"InvalidMessageContents", true, "permanent"},
		"unknown of ours":    {"SomethingNew", true, "permanent"},
		"unknown of theirs":  {"SomethingNew", false, "transient"},
		"internal":           {"InternalError", false, "transient"},
		"throttled":          {"RequestThrottled", false, "transient"},
		"throttled, ours":    {"RequestThrottled", true, "transient"},
		"key not usable":     {"KmsAccessDenied", true, "fatal"},
		"old protocol's":     {"AWS.SimpleQueueService.NonExistentQueue", true, "fatal"},
		"credentials":        {"InvalidClientTokenId", false, "fatal"},
		"expired and static": {"ExpiredToken", false, "fatal"},
	} {
		err := q.entryError(&types.BatchResultErrorEntry{Code: &tc.code, SenderFault: tc.sender})
		got := "transient"
		if relay.IsPermanent(err) {
			got = "permanent"
		} else if relay.IsFatal(err) {
			got = "fatal"
		}
		if got != tc.want {
			t.Errorf("%s: %v is %s, want %s", name, err, got, tc.want)
		}
	}
}

func TestCheckText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"{\"a\":\t\"b\"}\r\n Ærø 東京 🚢": "",
		"":                             "is empty",
		"a\x00b":                       "control character 0x00 at byte 1",
		"ab\x1f":                       "control character 0x1f at byte 2",
		"a\xff":                        "not UTF-8 at byte 1",
		"a\uffffb":                     "U+FFFF at byte 1",
	} {
		err := checkText(text)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("checkText(%q) = %v, want %q", text, err, want)
		}
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	for in, same := range map[string]bool{"outbox_orders:5:0": true, strings.Repeat("x", 128): true, strings.Repeat("x", 129): false, "a b": false, "é": false, "": false} {
		if got := token(in); (got == in) != same || len(got) > 128 || got == "" {
			t.Errorf("token(%q) = %q", in, got)
		}
	}
}

// SQS refuses a user, and a key of KMS, as a whole request or an entry of it. The stand-in
// of the other tests knows neither users nor keys, so this is an imitation.
func TestDeniedByPolicyAndKey(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"AccessDeniedException", "AccessDenied", "KmsAccessDenied", "KmsDisabled", "KMS.AccessDeniedException"} {
		for _, entry := range []bool{false, true} {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/x-amz-json-1.0")
				switch {
				case !strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".SendMessageBatch"):
					fmt.Fprint(w, "{}")
				case entry:
					fmt.Fprintf(w, `{"Failed":[{"Id":"0","Code":%q,"Message":"no","SenderFault":true}]}`, code)
				default:
					w.WriteHeader(http.StatusForbidden)
					fmt.Fprintf(w, `{"__type":"com.amazonaws.sqs#%s","message":"no"}`, code)
				}
			}))
			defer server.Close()
			err := openSink(t, server.URL+"/000000000000/q", nil).Publish(t.Context(), []relay.Message{relaytest.Message(1, "")})
			if partial, ok := errors.AsType[*relay.BatchError](err); ok {
				err = partial.Failed[0]
			}
			if !relay.IsFatal(err) || !strings.Contains(err.Error(), code) {
				t.Errorf("%s (of an entry: %t): Publish = %v, want a fatal error that names it", code, entry, err)
			}
		}
	}
}
