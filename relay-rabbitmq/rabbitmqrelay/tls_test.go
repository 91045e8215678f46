package rabbitmqrelay

import (
	"fmt"
	"net"
	"net/url"
	"runtime"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

func TestTLS(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "classic", nil)
	u, err := url.Parse(broker)
	if err != nil {
		t.Fatal(err)
	}
	ca := tlstest.New(t)
	cert, key := ca.Issue(t, "relay")
	u.Host = ca.Terminate(t, u.Host)
	sink := mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":%q,"tls_ca":%q,"tls_cert":%q,"tls_key":%q}`, u, queue, ca.File, cert, key))
	if err := sink.Publish(t.Context(), []relay.Message{relaytest.Message(1, "k")}); err != nil {
		t.Fatal(err)
	}
	drain(t, broker, queue, 1)
	// A server whose authority is not trusted is for an operator.
	if _, err := Backend().Sink.New(t.Context(), testEnv(t), fmt.Appendf(nil, `{"url":%q,"tls":true}`, u)); !relay.IsFatal(err) {
		t.Errorf("NewSink without tls_ca = %v, want a fatal error", err)
	}
}

// Each node is verified against its own name, also where one before it has taken
// the connection and dropped it.
func TestTLSSecondNode(t *testing.T) {
	broker := endpoint(t)
	u, err := url.Parse(broker)
	if err != nil {
		t.Fatal(err)
	}
	// Of another name than the one in the certificate.
	dropping, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil && runtime.GOOS != "linux" {
		t.Skipf("this machine has no second loopback address: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer dropping.Close()
	go func() {
		for {
			c, err := dropping.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	ca := tlstest.New(t)
	cert, key := ca.Issue(t, "relay")
	first, second := *u, *u
	first.Host, second.Host = dropping.Addr().String(), ca.Terminate(t, u.Host)
	mustSink(t, fmt.Sprintf(`{"url":[%q,%q],"tls_ca":%q,"tls_cert":%q,"tls_key":%q}`, &first, &second, ca.File, cert, key))
}
