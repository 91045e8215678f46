package rabbitmqrelay

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// withUser returns broker's URL with another user, password or vhost.
func edited(t testing.TB, broker string, change func(*amqp.URI)) string {
	t.Helper()
	uri, err := amqp.ParseURI(broker)
	if err != nil {
		t.Fatal(err)
	}
	change(&uri)
	return uri.String()
}

func TestSinkStartErrors(t *testing.T) {
	broker := endpoint(t)
	exchange := declare(t, broker, "classic", nil)
	for name, tc := range map[string]struct {
		config string
		fatal  bool
		text   string
	}{
		"no such exchange":    {fmt.Sprintf(`{"url":%q,"exchange":"no-such-exchange"}`, broker), true, "NOT_FOUND"},
		"password":            {fmt.Sprintf(`{"url":%q}`, edited(t, broker, func(u *amqp.URI) { u.Password = "wrong" })), true, "ACCESS_REFUSED"},
		"vhost":               {fmt.Sprintf(`{"url":%q}`, edited(t, broker, func(u *amqp.URI) { u.Vhost = "no-such-vhost" })), true, "NOT_ALLOWED"},
		"reserved name":       {fmt.Sprintf(`{"url":%q,"exchange":"amq.mine","declare_exchange":true}`, broker), true, "ACCESS_REFUSED"},
		"other type":          {fmt.Sprintf(`{"url":%q,"exchange":%q,"exchange_type":"fanout","declare_exchange":true}`, broker, exchange), true, "PRECONDITION_FAILED"},
		"unknown type":        {fmt.Sprintf(`{"url":%q,"exchange":"x","exchange_type":"no-such-type","declare_exchange":true}`, broker), true, "unknown exchange type"},
		"nobody there":        {`{"url":"amqp://127.0.0.1:1"}`, false, "connection refused"},
		"one of two is there": {fmt.Sprintf(`{"url":["amqp://127.0.0.1:1",%q]}`, broker), false, ""},
		"no such authority":   {fmt.Sprintf(`{"url":%q,"tls_ca":"/no/such/file"}`, broker), true, "tls_ca"},
	} {
		t.Run(name, func(t *testing.T) {
			sink, err := Backend().Sink.New(t.Context(), testEnv(t), []byte(tc.config))
			if err == nil {
				_ = sink.Close()
			}
			if tc.text == "" {
				if err != nil {
					t.Fatalf("NewSink = %v, want nil", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.text) || relay.IsFatal(err) != tc.fatal {
				t.Fatalf("NewSink = %v (fatal %t), want %q (fatal %t)", err, relay.IsFatal(err), tc.text, tc.fatal)
			}
		})
	}
}

func TestSinkWritesEverything(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "quorum", nil)
	sink := mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":%q,"declare_exchange":true,"routing_key":"{stream_table}.{row.region}"}`, broker, queue))
	m := relaytest.Message(7, "k")
	m.Subject, m.Row, m.FullRefresh = "pgtrickle.orders.insert", []byte(`{"region":"eu"}`), true
	m.Headers = []relay.Header{{Name: "traceparent", Value: "00-1-2-01"}}
	if err := sink.Publish(t.Context(), []relay.Message{m}); err != nil {
		t.Fatal(err)
	}
	d := drain(t, broker, queue, 1)[0]
	if d.MessageId != m.ID || d.Type != "insert" || d.ContentType != "application/json" || d.DeliveryMode != amqp.Persistent ||
		d.Timestamp.Unix() != m.Time.Unix() || d.RoutingKey != "orders.eu" || string(d.Body) != string(m.Body) {
		t.Errorf("arrived: %+v", d)
	}
	for name, want := range map[string]string{
		"Pgtrickle-Op": "insert", "Pgtrickle-Outbox-Id": "7", "Pgtrickle-Full-Refresh": "true", "Pgtrickle-Key": "k",
		"Pgtrickle-Subject": "pgtrickle.orders.insert", "traceparent": "00-1-2-01",
	} {
		if d.Headers[name] != want {
			t.Errorf("header %s arrived as %v, want %q", name, d.Headers[name], want)
		}
	}
}

// The table is one for all messages: none may have another's headers.
func TestSinkHeadersAreEachMessagesOwn(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "classic", nil)
	sink := mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":%q,"persistent":false}`, broker, queue))
	batch := []relay.Message{relaytest.Message(1, "a"), relaytest.Message(2, ""), relaytest.Message(3, "c"), relaytest.Message(4, "d")}
	batch[0].Headers = []relay.Header{{Name: "one", Value: "1"}}
	batch[1].FullRefresh = true
	batch[2].Headers = []relay.Header{{Name: "three", Value: "3"}}
	if err := sink.Publish(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	for i, d := range drain(t, broker, queue, 4) {
		want := map[string]any{"Pgtrickle-Op": "insert", "Pgtrickle-Outbox-Id": fmt.Sprint(i + 1), "Pgtrickle-Subject": "orders.insert"}
		if batch[i].Key != "" {
			want["Pgtrickle-Key"] = batch[i].Key
		}
		if batch[i].FullRefresh {
			want["Pgtrickle-Full-Refresh"] = "true"
		}
		for _, h := range batch[i].Headers {
			want[h.Name] = h.Value
		}
		if fmt.Sprint(map[string]any(d.Headers)) != fmt.Sprint(want) {
			t.Errorf("message %d has headers %v, want %v", i, d.Headers, want)
		}
		if d.DeliveryMode != amqp.Transient {
			t.Errorf("message %d is persistent, though persistent is off", i)
		}
	}
}

func TestSinkUnroutable(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "classic", nil)
	batch := []relay.Message{relaytest.Message(1, "k")}
	batch[0].StreamTable = "nowhere"
	for mandatory, wantErr := range map[bool]bool{true: true, false: false} {
		sink := mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":%q,"mandatory":%t}`, broker, queue, mandatory))
		err := sink.Publish(t.Context(), batch)
		if (err != nil) != wantErr {
			t.Errorf("mandatory=%t: Publish of a message for no queue = %v", mandatory, err)
		}
		var partial *relay.BatchError
		if wantErr && (!errors.As(err, &partial) || !relay.IsPermanent(partial.Failed[0]) || !strings.Contains(err.Error(), "NO_ROUTE")) {
			t.Errorf("mandatory=%t: Publish = %v, want a permanent error with NO_ROUTE", mandatory, err)
		}
	}
}

// A queue that is full rejects: that passes, and nothing of the key may be
// accepted before what was rejected.
// A routing key that no template makes, and that leads nowhere, is a fault of the
// configuration.
func TestSinkUnroutableFixedKey(t *testing.T) {
	broker := endpoint(t)
	name := declare(t, broker, "classic", nil)
	sink := mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":"","routing_key":%q}`, broker, name+"-missing"))
	if err := sink.Publish(t.Context(), []relay.Message{relaytest.Message(1, "k")}); !relay.IsFatal(err) || !strings.Contains(err.Error(), "NO_ROUTE") {
		t.Errorf("Publish with a fixed routing key for no queue = %v, want a fatal error", err)
	}
}

// The broker closes the channel for a routing key to which the user may not publish. Only
// the messages with it are refused. User topics may publish to allowed.# only.
func TestSinkDeniedTopic(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "classic", nil)
	channel := rawChannel(t, broker)
	for _, key := range []string{"allowed.#", "denied.#"} {
		if err := channel.QueueBind(queue, key, "amq.topic", false, nil); err != nil {
			t.Fatal(err)
		}
	}
	user := edited(t, broker, func(u *amqp.URI) { u.Username, u.Password = "topics", "topics" })
	sink := mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":"amq.topic","routing_key":"{row.tenant}"}`, user))
	for round := range 2 {
		batch := make([]relay.Message, 9)
		var want []string
		for i := range batch {
			batch[i] = relaytest.Message(10*round+i+1, strconv.Itoa(i%4))
			batch[i].Row = []byte(`{"tenant":"allowed.a"}`)
			if i == 1 || i == 6 {
				batch[i].Row = fmt.Appendf(nil, `{"tenant":"denied.%d"}`, i)
				want = append(want, batch[i].ID)
			}
		}
		if dead := relaytest.Settle(t, sink, batch); !slices.Equal(dead, want) {
			t.Errorf("dead letters %v, want %v", dead, want)
		}
	}
	seen := make(map[string]bool)
	deadline := time.Now().Add(relaytest.Patience())
	for len(seen) < 14 && time.Now().Before(deadline) {
		if d, ok, err := channel.Get(queue, true); err != nil {
			t.Fatal(err)
		} else if ok && d.MessageId != "" {
			seen[d.MessageId] = true
		}
	}
	if len(seen) != 14 {
		t.Errorf("%d messages arrived, want 14", len(seen))
	}

	fixed := mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":"amq.topic","routing_key":"denied.x"}`, user))
	if err := fixed.Publish(t.Context(), []relay.Message{relaytest.Message(1, "k")}); !relay.IsFatal(err) {
		t.Errorf("Publish to a fixed key that is denied = %v, want a fatal error", err)
	}
}

func TestSinkRejectedIsTransient(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "classic", amqp.Table{amqp.QueueMaxLenArg: int64(3), amqp.QueueOverflowArg: amqp.QueueOverflowRejectPublish})
	sink := mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":%q,"strict_order":true}`, broker, queue))
	var batch []relay.Message
	for i := range 8 {
		batch = append(batch, relaytest.Message(i, "k"))
	}
	var partial *relay.BatchError
	if err := sink.Publish(t.Context(), batch); !errors.As(err, &partial) {
		t.Fatalf("Publish into a full queue = %v, want a BatchError", err)
	}
	n := len(batch) - len(partial.Failed)
	first := partial.Failed[n]
	if first == nil || relay.IsPermanent(first) || relay.IsFatal(first) || !strings.Contains(first.Error(), "nack") {
		t.Errorf("message %d = %v, want a transient rejection", n, first)
	}
	for i := n + 1; i < len(batch); i++ {
		if !errors.Is(partial.Failed[i], relay.ErrHeldBack) {
			t.Errorf("message %d = %v, want ErrHeldBack", i, partial.Failed[i])
		}
	}
	if got := drain(t, broker, queue, n); len(got) != n {
		t.Errorf("%d messages are in the queue, want the %d that were confirmed", len(got), n)
	}
}

func TestSinkTooLarge(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "classic", nil)
	sink := mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":%q}`, broker, queue))
	large := relaytest.Message(2, "k")
	large.Body = make([]byte, 129<<20) // more than any version's default
	batch := []relay.Message{relaytest.Message(1, "k"), large, relaytest.Message(3, "k"), relaytest.Message(4, "other")}
	for try := range 2 { // the broker reports its limit the first time
		var partial *relay.BatchError
		err := sink.Publish(t.Context(), batch)
		if !errors.As(err, &partial) || !relay.IsPermanent(partial.Failed[1]) || partial.Failed[2] == nil || relay.IsPermanent(partial.Failed[2]) || relay.IsFatal(partial.Failed[2]) {
			t.Fatalf("try %d: Publish with a message that is too large = %v", try, err)
		}
		if len(partial.Failed) != 2 {
			t.Errorf("try %d: %d messages failed, want the large one and the one behind it: %v", try, len(partial.Failed), partial.Unwrap())
		}
	}
}

// The broker's limit may have been raised since it was learnt.
func TestSinkForgetsTheLimit(t *testing.T) {
	broker := endpoint(t)
	s := mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":%q}`, broker, declare(t, broker, "classic", nil))).(*sink)
	batch := []relay.Message{relaytest.Message(1, "k")}
	s.maxBody, s.learnt = 3, time.Now()
	if err := s.Publish(t.Context(), batch); err == nil {
		t.Error("a message above the known limit was published")
	}
	s.learnt = time.Now().Add(-limitHolds)
	if err := s.Publish(t.Context(), batch); err != nil {
		t.Errorf("Publish after the limit was raised = %v", err)
	}
}

func TestSinkTooLongForAMQP(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "classic", nil)
	sink := mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":%q}`, broker, queue))
	long := strings.Repeat("x", 256)
	for name, change := range map[string]func(*relay.Message){
		"id":          func(m *relay.Message) { m.ID = long },
		"routing key": func(m *relay.Message) { m.StreamTable = long },
		"header name": func(m *relay.Message) { m.Headers = []relay.Header{{Name: long}} },
		"headers":     func(m *relay.Message) { m.Headers = []relay.Header{{Name: "h", Value: strings.Repeat("x", 1<<20)}} },
	} {
		batch := []relay.Message{relaytest.Message(1, "a"), relaytest.Message(2, "b"), relaytest.Message(3, "c")}
		change(&batch[1])
		var partial *relay.BatchError
		if err := sink.Publish(t.Context(), batch); !errors.As(err, &partial) || len(partial.Failed) != 1 || !relay.IsPermanent(partial.Failed[1]) {
			t.Errorf("%s too long: Publish = %v, want a permanent error for the one message", name, err)
		}
	}
}

func TestSinkBrokerFallsSilent(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "classic", nil)
	p, through := newProxy(t, broker)
	sink := mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":%q,"confirm_timeout":"200ms","max_in_flight":10}`, through, queue))
	p.freeze(true)
	began := time.Now()
	err := sink.Publish(t.Context(), []relay.Message{relaytest.Message(1, "k")})
	if err == nil || relay.IsFatal(err) || time.Since(began) > 5*time.Second {
		t.Fatalf("Publish to a silent broker = %v after %s, want a transient error", err, time.Since(began))
	}
	p.freeze(false)
	if err := sink.Publish(t.Context(), []relay.Message{relaytest.Message(1, "k")}); err != nil {
		t.Fatalf("Publish to a broker that is back = %v", err)
	}
}

func TestTimeoutOfSilentServer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts in silence
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	began := time.Now()
	_, err = Backend().Sink.New(t.Context(), testEnv(t), fmt.Appendf(nil, `{"url":"amqp://%s","timeout":"200ms"}`, listener.Addr()))
	if err == nil || relay.IsFatal(err) || time.Since(began) > 5*time.Second {
		t.Errorf("NewSink at a silent server = %v after %s, want a transient error after 200ms", err, time.Since(began))
	}
}

func TestHeartbeatAndName(t *testing.T) {
	broker := endpoint(t)
	s := mustSink(t, fmt.Sprintf(`{"url":%q,"heartbeat":"3s"}`, broker)).(*sink)
	if got := s.conn.Config.Heartbeat; got != 3*time.Second {
		t.Errorf("heartbeat agreed is %s, want 3s", got)
	}
	if got := s.conn.Config.Properties["connection_name"]; !strings.HasPrefix(got.(string), "pgtrickle-relay test/") {
		t.Errorf("connection_name is %v", got)
	}
	if got, err := s.Destination(new(relaytest.Message(1, ""))); err != nil || got != "orders.insert" {
		t.Errorf("Destination() = %q, %v; want orders.insert", got, err)
	}
}
