package rabbitmqrelay

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func endpoint(t testing.TB) string { return relaytest.Endpoint(t, "RELAY_TEST_RABBITMQ_URL") }

// proxy stands between a test and the broker, so that connections can be cut.
type proxy struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	conns map[net.Conn]bool
	ice   sync.RWMutex // held while frozen
}

// newProxy returns the broker's URL by way of a proxy.
func newProxy(t testing.TB, broker string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(broker)
	if err != nil {
		t.Fatalf("RELAY_TEST_RABBITMQ_URL: %v", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, target: u.Host, conns: make(map[net.Conn]bool)}
	go p.serve()
	t.Cleanup(func() {
		listener.Close()
		p.cut()
	})
	u.Host = listener.Addr().String()
	return p, u.String()
}

func (p *proxy) serve() {
	for {
		in, err := p.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.target)
		if err != nil {
			in.Close()
			continue
		}
		p.mu.Lock()
		p.conns[in], p.conns[out] = true, true
		p.mu.Unlock()
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			go func() {
				_, _ = io.Copy(pair[0], thawed{pair[1], &p.ice})
				pair[0].Close()
				pair[1].Close()
			}()
		}
	}
}

// freeze lets nothing through until it is called with false.
func (p *proxy) freeze(frozen bool) {
	if frozen {
		p.ice.Lock()
	} else {
		p.ice.Unlock()
	}
}

type thawed struct {
	io.Reader
	ice *sync.RWMutex
}

func (r thawed) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.ice.RLock()
	defer r.ice.RUnlock()
	return n, err
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
		delete(p.conns, c)
	}
}

func rawChannel(t testing.TB, broker string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(broker)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return channel
}

// declare makes a queue for the test, bound to a topic exchange of the same name.
func declare(t testing.TB, broker, queueType string, args amqp.Table) string {
	t.Helper()
	name := fmt.Sprintf("test-%s-%d", strings.ReplaceAll(t.Name(), "/", "-"), time.Now().UnixNano())
	channel := rawChannel(t, broker)
	if args == nil {
		args = amqp.Table{}
	}
	args[amqp.QueueTypeArg] = queueType
	if err := channel.ExchangeDeclare(name, "topic", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := channel.QueueDeclare(name, true, false, false, false, args); err != nil {
		t.Fatal(err)
	}
	if err := channel.QueueBind(name, "orders.*", name, false, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = channel.QueueDelete(name, false, false, false)
		_ = channel.ExchangeDelete(name, false, false)
	})
	return name
}

func testEnv(t testing.TB) relay.Env {
	return relay.Env{Pipeline: strings.ReplaceAll(t.Name(), "/", "-"), Group: "test", Identity: relaytest.Identity, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func mustSink(t testing.TB, config string) relay.Sink {
	t.Helper()
	s, err := Backend().Sink.New(t.Context(), testEnv(t), []byte(config))
	if err != nil {
		t.Fatalf("NewSink(%s) = %v", config, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func mustSource(t testing.TB, env relay.Env, config string) relay.Source {
	t.Helper()
	s, err := Backend().Source.New(t.Context(), env, []byte(config))
	if err != nil {
		t.Fatalf("NewSource(%s) = %v", config, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// drain gets everything that is in queue, at least n messages, and leaves it there.
func drain(t testing.TB, broker, queue string, n int) (got []amqp.Delivery) {
	t.Helper()
	conn, err := amqp.Dial(broker)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(relaytest.Patience())
	for {
		d, ok, err := channel.Get(queue, false)
		switch {
		case err != nil:
			t.Fatal(err)
		case ok:
			got = append(got, d)
		case len(got) >= n:
			return got
		case time.Now().After(deadline):
			t.Fatalf("queue %s has %d of %d messages", queue, len(got), n)
		default:
			time.Sleep(10 * time.Millisecond)
		}
	}
}
