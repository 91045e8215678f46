package brokers

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/testcontainers/testcontainers-go"
)

// elasticmqConfig keeps messages and queues on disk, each write at once, so that
// a restart loses nothing that was confirmed, as with the real service.
const elasticmqConfig = `include classpath("application.conf")
node-address { protocol = http, host = "127.0.0.1", port = %d, context-path = "" }
rest-sqs { enabled = true, bind-port = 9324, bind-hostname = "0.0.0.0", sqs-limits = %s }
rest-stats { enabled = false }
queues-storage { enabled = true, path = "/tmp/elasticmq-queues.conf" }
messages-storage { enabled = true, uri = "jdbc:h2:/tmp/elasticmq;WRITE_DELAY=0" }
`

func sqs() spec {
	return spec{
		official: "softwaremill/elasticmq:1.6.14",
		own:      "sqs",
		port:     9324,
		env:      "RELAY_TEST_SQS_ENDPOINT",
		request: func(opts Options, port int) testcontainers.ContainerRequest {
			limits := "strict"
			if opts.Large {
				limits = "relaxed"
			}
			return testcontainers.ContainerRequest{
				Env:   map[string]string{"JAVA_OPTS": "-Xmx512m"},
				Files: []testcontainers.ContainerFile{{Reader: strings.NewReader(fmt.Sprintf(elasticmqConfig, port, limits)), ContainerFilePath: "/opt/elasticmq.conf", FileMode: 0o644}},
			}
		},
		url: func(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) },
		ready: func(ctx context.Context, url string) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/?Action=ListQueues", nil)
			if err != nil {
				return err
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			if res.StatusCode != http.StatusOK {
				return fmt.Errorf("ListQueues: %s", res.Status)
			}
			return nil
		},
	}
}
