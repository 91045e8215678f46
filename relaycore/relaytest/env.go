package relaytest

import (
	"os"
	"testing"
)

// Endpoint returns the value of the environment variable env, which says where a
// server for tests is. Without one the test is skipped, or, where
// RELAY_TEST_REQUIRE is set, failed: in CI a missing server is a fault.
func Endpoint(t testing.TB, env string) string {
	t.Helper()
	endpoint := os.Getenv(env)
	if endpoint == "" {
		if os.Getenv("RELAY_TEST_REQUIRE") != "" {
			t.Fatalf("%s is not set, and RELAY_TEST_REQUIRE asks for every server", env)
		}
		t.Skipf("%s is not set", env)
	}
	return endpoint
}
