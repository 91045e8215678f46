package brokers

import (
	"context"
	"fmt"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/testcontainers/testcontainers-go"
)

func nats(official, own, env string) spec {
	return spec{
		official: official,
		own:      own,
		port:     4222,
		env:      env,
		request: func(opts Options, _ int) testcontainers.ContainerRequest {
			config := "jetstream { store_dir: /tmp/jetstream }\n"
			if opts.Large {
				config += "max_payload: 8MB\n"
			}
			return testcontainers.ContainerRequest{
				Files: []testcontainers.ContainerFile{{Reader: strings.NewReader(config), ContainerFilePath: "/nats.conf", FileMode: 0o644}},
				Cmd:   []string{"-c", "/nats.conf"},
			}
		},
		url: func(port int) string { return fmt.Sprintf("nats://127.0.0.1:%d", port) },
		ready: func(_ context.Context, url string) error {
			nc, err := natsgo.Connect(url, natsgo.Timeout(time.Second), natsgo.MaxReconnects(0))
			if err != nil {
				return err
			}
			defer nc.Close()
			js, err := nc.JetStream(natsgo.MaxWait(time.Second))
			if err != nil {
				return err
			}
			_, err = js.AccountInfo()
			return err
		},
	}
}
