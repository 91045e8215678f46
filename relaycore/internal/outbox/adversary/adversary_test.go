package adversary_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/adversary"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

func TestMain(m *testing.M) {
	if was, err := adversary.ReaderMain(context.Background()); was {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestAdversary runs each strategy for ADVERSARY_FOR (25s) and until
// ADVERSARY_ROWS rows (none) are committed. The naive query takes part, to show
// that what the strategies survive is deadly.
func TestAdversary(t *testing.T) {
	d, err := time.ParseDuration(cmp.Or(os.Getenv("ADVERSARY_FOR"), "25s"))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := strconv.ParseInt(cmp.Or(os.Getenv("ADVERSARY_ROWS"), "0"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for _, strategy := range []string{adversary.Window, adversary.Fence, adversary.Naive} {
		t.Run(strategy, func(t *testing.T) {
			opts := adversary.Options{URL: pgtest.URL(t), Foreign: pgtest.URL(t), Strategy: strategy, Bulk: 2, For: d, Rows: rows, Seed: uint64(time.Now().UnixNano())}
			if strategy == adversary.Naive {
				opts.For, opts.Rows = 6*time.Second, 0
			}
			t.Logf("seed %d", opts.Seed)
			rep, err := adversary.Run(context.Background(), opts)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(rep)
			switch bad := rep.Bad(); {
			case strategy == adversary.Naive && rep.Lost == 0:
				t.Fatal("the naive query lost nothing, so this harness proves nothing")
			case strategy != adversary.Naive && bad != nil:
				t.Fatal(bad)
			case strategy != adversary.Naive && rep.Kills == 0:
				t.Fatal("no reader was killed")
			}
		})
	}
}

// TestCachedSequence gives sessions 50 ids at once. Nothing may be lost, and
// no id may be reported as settled that a session can still use. Keys
// that have one writer stay in order; others do not, and this must show.
func TestCachedSequence(t *testing.T) {
	d, err := time.ParseDuration(cmp.Or(os.Getenv("ADVERSARY_FOR"), "10s"))
	if err != nil {
		t.Fatal(err)
	}
	for _, own := range []bool{true, false} {
		t.Run(fmt.Sprintf("own keys %v", own), func(t *testing.T) {
			opts := adversary.Options{URL: pgtest.URL(t), Strategy: adversary.Window, Cache: 50, OwnKeys: own, For: d, Seed: uint64(time.Now().UnixNano())}
			t.Logf("seed %d", opts.Seed)
			rep, err := adversary.Run(context.Background(), opts)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(rep)
			inverted := rep.Inversions
			if rep.Inversions = 0; rep.Bad() != nil {
				t.Error(rep.Bad())
			}
			if (inverted == 0) != own {
				t.Errorf("%d events came after a later one of their key", inverted)
			}
		})
	}
}
