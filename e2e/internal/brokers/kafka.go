package brokers

import (
	"context"
	"fmt"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/testcontainers/testcontainers-go"
)

// kafkaScript runs one node that is broker and controller. The address that it
// advertises to its clients is the one on the host.
const kafkaScript = `cat >/tmp/server.properties <<END
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:9093
listeners=PLAINTEXT://:9092,CONTROLLER://127.0.0.1:9093
advertised.listeners=PLAINTEXT://127.0.0.1:%d
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=/tmp/kafka-logs
num.partitions=4
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
%s
END
/opt/kafka/bin/kafka-storage.sh format --ignore-formatted --cluster-id 4L6g3nShT-eMCtK--X86sw --config /tmp/server.properties &&
exec /opt/kafka/bin/kafka-server-start.sh /tmp/server.properties
`

func kafka() spec {
	return spec{
		official: "apache/kafka:4.1.1",
		own:      "kafka",
		port:     9092,
		env:      "RELAY_TEST_KAFKA_BROKERS",
		request: func(opts Options, port int) testcontainers.ContainerRequest {
			limits := ""
			if opts.Large {
				limits = "message.max.bytes=8388608\nreplica.fetch.max.bytes=8388608"
			}
			return testcontainers.ContainerRequest{
				Env:        map[string]string{"KAFKA_HEAP_OPTS": "-Xmx512m"},
				Entrypoint: []string{"sh", "-c"},
				Cmd:        []string{fmt.Sprintf(kafkaScript, port, limits)},
			}
		},
		url: func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) },
		ready: func(ctx context.Context, url string) error {
			conn, err := kafkago.DialContext(ctx, "tcp", url)
			if err != nil {
				return err
			}
			defer conn.Close()
			if deadline, ok := ctx.Deadline(); ok {
				if err := conn.SetDeadline(deadline); err != nil {
					return err
				}
			}
			brokers, err := conn.Brokers()
			if err == nil && len(brokers) == 0 {
				err = fmt.Errorf("no broker has registered")
			}
			return err
		},
	}
}
