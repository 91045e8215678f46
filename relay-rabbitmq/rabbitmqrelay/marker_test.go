package rabbitmqrelay

import (
	"fmt"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// logged is an Env whose log can be read.
func logged(t testing.TB) (relay.Env, func() string) {
	log := new(relaytest.Log)
	env := testEnv(t)
	env.Logger = log.Logger()
	return env, log.String
}

// A queue that is deleted with messages in it and declared again is named, whatever the
// source did meanwhile. Only a source that receives gets the broker's cancellation.
func TestQueueIsDeleted(t *testing.T) {
	broker := endpoint(t)
	for name, tc := range map[string]struct {
		away, back func(p *proxy, src relay.Source)
	}{
		"killed": {
			func(_ *proxy, src relay.Source) { _ = src.Close() },
			func(*proxy, relay.Source) {},
		},
		"frozen past the heartbeat": {
			func(p *proxy, _ relay.Source) { p.freeze(true) },
			func(p *proxy, _ relay.Source) { p.cut(); p.freeze(false) },
		},
		"at work": {func(*proxy, relay.Source) {}, func(*proxy, relay.Source) {}},
	} {
		for _, kind := range []string{"quorum", "classic"} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				queue := declare(t, broker, kind, nil)
				channel := confirming(t, broker)
				write := func(from, to int) {
					for n := from; n <= to; n++ {
						feed(t, channel, "", queue, amqp.Publishing{Body: []byte("{}"), MessageId: fmt.Sprint(n)})
					}
				}
				p, url := newProxy(t, broker)
				env, log := logged(t)
				var cursor relaytest.Cursor
				config := fmt.Sprintf(`{"url":%q,"queue":%q,"queue_type":%q}`, url, queue, kind)
				open := func() relay.Source { return mustSource(t, cursor.Env(env), config) }
				src := open()
				write(1, 3)
				if err := src.Ack(t.Context(), receive(t, src, 3)); err != nil {
					t.Fatal(err)
				}
				_ = src.Close()
				src = open() // connecting again is no deletion
				if nothing(t, src); strings.Contains(log(), "queue was deleted") {
					t.Fatalf("the log names a deletion before there is one:\n%s", log())
				}
				tc.away(p, src)
				write(4, 10)
				if _, err := channel.QueueDelete(queue, false, false, false); err != nil {
					t.Fatal(err)
				}
				if _, err := channel.QueueDeclare(queue, true, false, false, false, amqp.Table{amqp.QueueTypeArg: kind}); err != nil {
					t.Fatal(err)
				}
				write(11, 12)
				tc.back(p, src)
				if name == "killed" {
					src = open()
				}
				var last string
				for ctx := t.Context(); last != queue+":12"; {
					batch, err := src.Receive(ctx, 10)
					if relay.IsFatal(err) || ctx.Err() != nil {
						t.Fatal(err)
					}
					for _, m := range batch {
						last = queue + ":" + m.ID
					}
				}
				if n := strings.Count(log(), "queue was deleted"); n != 1 || !strings.Contains(log(), queue) {
					t.Errorf("the log names %d deletions, want 1:\n%s", n, log())
				}
				if state := cursor.Env(env).FarEnds; !strings.Contains(state, `"remade":1`) {
					t.Errorf("the cursor has %s, want one that was made again", state)
				}
			})
		}
	}
}

// A user without the permission for the exchange reads, and the log warns.
func TestQueueCannotBeMarked(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "quorum", nil)
	env, log := logged(t)
	var cursor relaytest.Cursor
	config := fmt.Sprintf(`{"url":%q,"queue":%q,"marker":"amq.direct.denied"}`, broker, queue) // amq.* is the broker's
	src := mustSource(t, cursor.Env(env), config)
	feed(t, confirming(t, broker), "", queue, amqp.Publishing{Body: []byte("{}"), MessageId: "1"})
	if receive(t, src, 1); !strings.Contains(log(), "deleted queue may go unnoticed") {
		t.Errorf("the log does not warn: %s", log())
	}
}
