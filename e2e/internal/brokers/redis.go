package brokers

import (
	"context"
	"fmt"

	goredis "github.com/redis/go-redis/v9"
	"github.com/testcontainers/testcontainers-go"
)

func redis() spec {
	return spec{
		official: "redis:8.2.3",
		own:      "redis",
		port:     6379,
		env:      "RELAY_TEST_REDIS_URL",
		request: func(Options, int) testcontainers.ContainerRequest {
			// The append-only file is written before the reply: a killed server
			// forgets nothing that it has confirmed.
			return testcontainers.ContainerRequest{Cmd: []string{"redis-server", "--appendonly", "yes", "--protected-mode", "no", "--save", ""}}
		},
		url: func(port int) string { return fmt.Sprintf("redis://127.0.0.1:%d/0", port) },
		ready: func(ctx context.Context, url string) error {
			opts, err := goredis.ParseURL(url)
			if err != nil {
				return err
			}
			opts.MaxRetries = -1
			client := goredis.NewClient(opts)
			defer client.Close()
			return client.Ping(ctx).Err()
		},
	}
}
