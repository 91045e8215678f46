package brokers

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/testcontainers/testcontainers-go"
)

func postgres(official, own, env string) spec {
	return spec{
		official: official,
		own:      own,
		port:     5432,
		env:      env,
		request: func(Options, int) testcontainers.ContainerRequest {
			return testcontainers.ContainerRequest{
				Env: map[string]string{"POSTGRES_HOST_AUTH_METHOD": "trust"},
				Cmd: []string{
					"postgres", "-c", "max_connections=300", "-c", "max_prepared_transactions=64",
					"-c", "shared_buffers=512MB", "-c", "wal_level=logical", "-c", "max_wal_size=4GB",
					// A session and its transaction end soon after a network cut. The keepalives end
					// an idle session; the timeout ends a session that is sending an answer.
					"-c", "tcp_keepalives_idle=2", "-c", "tcp_keepalives_interval=1", "-c", "tcp_keepalives_count=3",
					"-c", "tcp_user_timeout=10s",
				},
				Tmpfs: map[string]string{"/dev/shm": "size=1g"},
			}
		},
		url: func(port int) string { return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres", port) },
		ready: func(ctx context.Context, url string) error {
			conn, err := pgx.Connect(ctx, url)
			if err != nil {
				return err
			}
			return conn.Close(ctx)
		},
	}
}
