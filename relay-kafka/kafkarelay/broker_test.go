package kafkarelay

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

// broker is a Kafka that a test may stop and start. It listens on a plain port, on one
// with TLS and passwords, and on one with client certificates.
type broker struct {
	plain, sasl, mutual string
	ca, cert, key       string // files in PEM; the client's
	dir, jars           string
	cmd                 *exec.Cmd
}

// startBroker runs Kafka from the jars in RELAY_TEST_KAFKA_HOME.
func startBroker(t *testing.T) *broker {
	t.Helper()
	b := &broker{jars: relaytest.Endpoint(t, "RELAY_TEST_KAFKA_HOME"), dir: t.TempDir()}
	ports := freePorts(t, 4)
	b.plain, b.sasl, b.mutual = ports[0], ports[1], ports[2]
	server := b.certificates(t)
	b.write(t, "server.properties", fmt.Sprintf(`
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@%[4]s
controller.listener.names=CONTROLLER
listeners=PLAIN://%[1]s,SASL://%[2]s,MUTUAL://%[3]s,CONTROLLER://%[4]s
advertised.listeners=PLAIN://%[1]s,SASL://%[2]s,MUTUAL://%[3]s
listener.security.protocol.map=PLAIN:PLAINTEXT,SASL:SASL_SSL,MUTUAL:SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAIN
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="alice-secret";
listener.name.sasl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location=%[5]s
ssl.truststore.type=PEM
ssl.truststore.location=%[6]s
listener.name.mutual.ssl.client.auth=required
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:alice
log.dirs=%[7]s
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.message.timestamp.after.max.ms=3600000
`, ports[0], ports[1], ports[2], ports[3], server, b.ca, filepath.Join(b.dir, "data")))
	id, err := b.java("kafka.tools.StorageTool", "random-uuid").Output()
	if err != nil {
		t.Fatalf("random-uuid: %v", err)
	}
	format := b.java("kafka.tools.StorageTool", "format", "-t", string(bytes.TrimSpace(id)), "-c", filepath.Join(b.dir, "server.properties"),
		"--add-scram", "SCRAM-SHA-256=[name=alice,password=alice-secret]", "--add-scram", "SCRAM-SHA-512=[name=alice,password=alice-secret]",
		"--add-scram", "SCRAM-SHA-256=[name=bob,password=bob-secret]")
	if out, err := format.CombinedOutput(); err != nil {
		t.Fatalf("format: %v\n%s", err, out)
	}
	b.start(t)
	t.Cleanup(func() { b.stop() })
	return b
}

func (b *broker) java(class string, args ...string) *exec.Cmd {
	return exec.Command("java", append([]string{"-Xmx400m", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp", filepath.Join(b.jars, "*"), class}, args...)...)
}

func (b *broker) start(t testing.TB) {
	t.Helper()
	b.cmd = b.java("kafka.Kafka", filepath.Join(b.dir, "server.properties"))
	log, err := os.OpenFile(filepath.Join(b.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	b.cmd.Stdout, b.cmd.Stderr = log, log
	if err := b.cmd.Start(); err != nil {
		t.Fatalf("start Kafka: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*relaytest.Patience()) // a JVM on a busy machine
	defer cancel()
	for {
		rawTransport.CloseIdleConnections()
		client := rawClient(b.plain)
		meta, err := client.Metadata(ctx, &kafka.MetadataRequest{})
		if err == nil && len(meta.Brokers) > 0 && meta.Controller.Host != "" {
			return
		}
		if ctx.Err() != nil {
			text, _ := os.ReadFile(filepath.Join(b.dir, "log"))
			t.Fatalf("Kafka does not answer: %v\n%s", err, text)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// stop kills the broker, as a crash would.
func (b *broker) stop() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
	rawTransport.CloseIdleConnections()
}

func (b *broker) write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// certificates makes an authority, the client's certificate and the broker's, and
// returns the file with the broker's certificate and key.
func (b *broker) certificates(t testing.TB) string {
	t.Helper()
	ca := tlstest.New(t)
	b.ca = ca.File
	b.cert, b.key = ca.Issue(t, "alice")
	cert, key := ca.Issue(t, "broker")
	var both []byte
	for _, file := range []string{key, cert} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, text...)
	}
	return b.write(t, "server.pem", string(both))
}

func freePorts(t testing.TB, n int) []string {
	t.Helper()
	out := make([]string, n)
	for i := range out {
		l, err := net.Listen("tcp", "localhost:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		out[i] = fmt.Sprintf("localhost:%d", l.Addr().(*net.TCPAddr).Port)
	}
	return out
}
