package brokers

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/testcontainers/testcontainers-go"
)

// rabbitmqDefinitions has the default user, which the server does not make beside
// definitions, and one that may publish only to some routing keys.
const rabbitmqDefinitions = `{
	"vhosts": [{"name": "/"}],
	"users": [
		{"name": "guest", "password": "guest", "tags": ["administrator"]},
		{"name": "topics", "password": "topics", "tags": []}],
	"permissions": [
		{"user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"},
		{"user": "topics", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}],
	"topic_permissions": [{"user": "topics", "vhost": "/", "exchange": "amq.topic", "write": "^allowed\\.", "read": ".*"}]
}`

func rabbitmq() spec {
	return spec{
		official: "rabbitmq:4.1.6",
		own:      "rabbitmq",
		port:     5672,
		env:      "RELAY_TEST_RABBITMQ_URL",
		request: func(Options, int) testcontainers.ContainerRequest {
			return testcontainers.ContainerRequest{
				Files: []testcontainers.ContainerFile{{
					Reader: strings.NewReader("loopback_users = none\nmax_message_size = 16777216\n" +
						"load_definitions = /etc/rabbitmq/tests.json\n"),
					ContainerFilePath: "/etc/rabbitmq/conf.d/90-tests.conf",
					FileMode:          0o644,
				}, {
					Reader:            strings.NewReader(rabbitmqDefinitions),
					ContainerFilePath: "/etc/rabbitmq/tests.json",
					FileMode:          0o644,
				}},
				// The data folder is named after the host.
				ConfigModifier: func(c *container.Config) { c.Hostname = "rabbit" },
				// Erlang else sizes its port table by the limit of open files.
				Env: map[string]string{"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+Q 65536"},
			}
		},
		url: func(port int) string { return fmt.Sprintf("amqp://guest:guest@127.0.0.1:%d/", port) },
		ready: func(_ context.Context, url string) error {
			conn, err := amqp.DialConfig(url, amqp.Config{Dial: amqp.DefaultDial(2 * time.Second)})
			if err != nil {
				return err
			}
			defer conn.Close()
			ch, err := conn.Channel()
			if err != nil {
				return err
			}
			return ch.Close()
		},
	}
}
