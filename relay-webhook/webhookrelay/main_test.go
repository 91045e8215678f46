package webhookrelay

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(attackEnv); addr != "" {
		attack(addr)
		return
	}
	goleak.VerifyTestMain(m)
}
