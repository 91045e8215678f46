// Package only keeps the tests that need Docker out of a plain go test.
package only

import (
	"fmt"
	"os"
	"testing"
)

// E2E runs the tests of a package where RELAY_E2E=1 and otherwise prints why it does
// not. Use it as the body of TestMain.
func E2E(m *testing.M) {
	if os.Getenv("RELAY_E2E") != "1" {
		fmt.Println("not run: these tests start containers; make e2e runs them (RELAY_E2E=1)")
		os.Exit(0)
	}
	os.Exit(m.Run())
}
