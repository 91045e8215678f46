package relay_test

import (
	"errors"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	table := relay.Refusals{
		{Kind: relay.KindSetup, Note: "there is none"},
		{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "404 *is down*"},
		{Kind: relay.KindMissing, Blame: relay.BlameDestination, Answer: "404 *"},
		{Kind: relay.KindInvalid, Blame: relay.BlameMessage, Answer: "23*"},
		{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "403|405"},
	}
	for answer, want := range map[string]struct{ fixed, ofRow string }{
		"":                                {"transient", "transient"},
		"404 NOT_FOUND - queue 'q'":       {"fatal", "permanent"},
		"404 NOT_FOUND - node is down":    {"transient", "transient"},
		"404 NOT_FOUND - node is down, x": {"transient", "transient"},
		"404":                             {"transient", "transient"},
		"23505":                           {"permanent", "permanent"},
		"123505":                          {"transient", "transient"},
		"403":                             {"fatal", "fatal"},
		"405":                             {"fatal", "fatal"},
		"4030":                            {"transient", "transient"},
	} {
		for ofRow, want := range map[bool]string{false: want.fixed, true: want.ofRow} {
			err := table.Classify(errors.New("x"), answer, ofRow)
			got := "transient"
			switch {
			case relay.IsFatal(err):
				got = "fatal"
			case relay.IsPermanent(err):
				got = "permanent"
			}
			if got != want {
				t.Errorf("Classify(%q, of a row %t) is %s, want %s", answer, ofRow, got, want)
			}
		}
	}
}
