package brokers

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/testcontainers/testcontainers-go"
)

// The service has no restarts that its users could see. The stand-in, persistent or
// not, loses state in a restart: the messages in flight of a FIFO group, and those that
// were already sent. So the tests never restart it: they cut its network.
const elasticmqConfig = `include classpath("application.conf")
node-address { protocol = http, host = "127.0.0.1", port = %d, context-path = "" }
rest-sqs { enabled = true, bind-port = 9324, bind-hostname = "0.0.0.0", sqs-limits = %s }
rest-stats { enabled = false }
`

func sqs() spec {
	return spec{
		official: "softwaremill/elasticmq:1.6.14",
		own:      "sqs",
		port:     9324,
		env:      "RELAY_TEST_SQS_ENDPOINT",

		forgetful: true,
		request: func(opts Options, port int) testcontainers.ContainerRequest {
			limits := "strict"
			if opts.Large {
				limits = "relaxed"
			}
			return testcontainers.ContainerRequest{
				Env: map[string]string{"JAVA_OPTS": "-Xmx512m"},
				Files: []testcontainers.ContainerFile{{
					Reader:            strings.NewReader(fmt.Sprintf(elasticmqConfig, port, limits)),
					ContainerFilePath: "/opt/elasticmq.conf", FileMode: 0o644,
				}},
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
