package ends

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
)

// TestEnds shows that what an end produces arrives there, each record once, in
// the order of its key.
func TestEnds(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"nats": "RELAY_TEST_NATS_URL", "kafka": "RELAY_TEST_KAFKA_BROKERS", "redis": "RELAY_TEST_REDIS_URL",
		"sqs": "RELAY_TEST_SQS_ENDPOINT", "rabbitmq": "RELAY_TEST_RABBITMQ_URL", "stdout": "",
	}
	for _, k := range Kinds() {
		variable, ok := env[k.Name]
		if !ok {
			continue // they produce through a relay, or not at all
		}
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			url := os.Getenv(variable)
			if variable != "" && url == "" {
				if os.Getenv("RELAY_TEST_REQUIRE") != "" {
					t.Fatalf("%s is not set, and RELAY_TEST_REQUIRE asks for every server", variable)
				}
				t.Skipf("%s is not set", variable)
			}
			name := fmt.Sprintf("ends_%s_%d", k.Name, time.Now().UnixNano())
			end, err := k.New(t.Context(), Env{Name: name, Dir: t.TempDir(), Server: &brokers.Server{URL: url}})
			if err != nil {
				t.Fatal(err)
			}
			defer end.Close()
			sent := make([]Record, 250)
			for i := range sent {
				sent[i] = Record{ID: fmt.Sprint(name, "-", i), Key: fmt.Sprint("key-", i%7), Body: fmt.Appendf(nil, `{"dedup_key":"%s-%d","note":"ü"}`, name, i)}
			}
			sent[100].Body = fmt.Appendf(nil, `{"dedup_key":"%s-100","note":"%s"}`, name, strings.Repeat("x", 200_000))
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := end.Produce(ctx, sent); err != nil {
				t.Fatal(err)
			}
			got, err := end.Arrived(ctx)
			if err != nil {
				t.Fatal(err)
			}
			at := make(map[string]int)
			for _, r := range got {
				at[r.ID]++
			}
			for _, r := range sent {
				if at[r.ID] != 1 {
					t.Fatalf("%s arrived %d times; %d records in all", r.ID, at[r.ID], len(got))
				}
			}
		})
	}
}
