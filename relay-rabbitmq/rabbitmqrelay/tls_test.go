package rabbitmqrelay

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"runtime"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
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

// TestFilesOfURL: the files that a URL names are read as those of keys are, so that one
// which the operator does not permit is refused.
func TestFilesOfURL(t *testing.T) {
	ca := tlstest.New(t)
	uri, err := amqp.ParseURI("amqps://localhost?cacertfile=" + ca.File)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := new(connConfig).tlsConfig(uri, os.ReadFile); err != nil {
		t.Errorf("tlsConfig = %v", err)
	}
	access, err := relaycfg.NewAccess("", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := new(connConfig).tlsConfig(uri, access.ReadFile); err == nil {
		t.Error("tlsConfig has read a file outside of the permitted directory")
	}
}
