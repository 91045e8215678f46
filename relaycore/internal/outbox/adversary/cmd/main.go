// Adversary tries for a given time to make an outbox reader lose or reorder rows; see
// package adversary.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/adversary"
)

func main() {
	ctx := context.Background()
	if was, err := adversary.ReaderMain(ctx); was {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	opts := adversary.Options{Log: os.Stderr}
	flag.StringVar(&opts.URL, "url", os.Getenv("ADVERSARY_URL"), "a database whose schema pgtrickle may be dropped")
	flag.StringVar(&opts.Foreign, "foreign", "", "another database of the cluster, for a stranger's long transaction")
	flag.StringVar(&opts.Strategy, "strategy", adversary.Window, "window, fence or naive")
	flag.IntVar(&opts.Writers, "writers", 32, "how many writers")
	flag.IntVar(&opts.Bulk, "bulk", 0, "how many of them write hundreds of rows at once")
	flag.DurationVar(&opts.For, "for", time.Minute, "how long they write, at least")
	flag.Int64Var(&opts.Rows, "rows", 0, "how many rows they commit, at least")
	flag.IntVar(&opts.Cache, "cache", 1, "CACHE of the sequence; above 1 keys are turned around unless -own-keys is set")
	flag.BoolVar(&opts.OwnKeys, "own-keys", false, "give each key one writer")
	flag.BoolVar(&opts.NoKill, "no-kill", false, "let the reader live")
	flag.Uint64Var(&opts.Seed, "seed", uint64(time.Now().UnixNano()), "seed of all random choices")
	flag.Parse()
	rep, err := adversary.Run(ctx, opts)
	if rep != nil {
		fmt.Println(rep)
	}
	if err == nil {
		err = rep.Bad()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
