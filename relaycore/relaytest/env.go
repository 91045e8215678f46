package relaytest

import (
	"os"
	"testing"
)

// Endpoint returns the value of the environment variable env, the address of a
// server for tests. Without one the test is skipped with a reason, or failed
// where RELAY_TEST_REQUIRE is set: a run that must prove something cannot pass
// by skipping.
func Endpoint(t testing.TB, env string) string {
	t.Helper()
	endpoint := os.Getenv(env)
	if endpoint == "" {
		if os.Getenv("RELAY_TEST_REQUIRE") != "" {
			t.Fatalf("%s is not set, and RELAY_TEST_REQUIRE asks for every server", env)
		}
		t.Skipf("%s is not set: no server to test against; `make test` starts one", env)
	}
	return endpoint
}
