package kafkarelay

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(tests{m}) }

// tests ends the connections of the tests' own clients before goleak looks.
type tests struct{ *testing.M }

func (t tests) Run() int {
	defer rawTransport.CloseIdleConnections()
	return t.M.Run()
}
