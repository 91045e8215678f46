package inbox

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	relaytest.Refusals(t, Refusals, func(answer string, _ bool) error {
		code := (answer + "000")[:5]
		e := &pgconn.PgError{Code: code, ConstraintName: "c"}
		switch {
		case answer == noPartition:
			e.ConstraintName = ""
		case strings.HasSuffix(answer, policyRoutine):
			e.Routine = policyRoutine
		}
		return classify(e)
	})
}
