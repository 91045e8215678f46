package sqsrelay

import (
	"testing"

	"go.uber.org/goleak"
)

// The SDK copies its transport, so that only a timeout closes idle connections.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}
