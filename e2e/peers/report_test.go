package main

import (
	"errors"
	"strings"
	"testing"
)

func TestMarkdown(t *testing.T) {
	r := results{peers: []string{"nothing", "copy", "relay (trigger)", "rival"}}
	add := func(name string, better bool, peer string, v ...float64) {
		for _, v := range v {
			r.add(name, better, &job{peer: peerOf(peer)}, v)
		}
	}
	add("drain: events/s", more, "copy", 9000)
	add("drain: events/s", more, "relay (trigger)", 5000, 7000, 6000)
	add("drain: events/s", more, "rival", 5500)
	add("steady: p99, ms", less, "relay (trigger)", 4.2)
	add("steady: p99, ms", less, "rival", 3)
	add("drain: rows lost", less, "relay (trigger)", 0)
	add("drain: rows lost", less, "rival", 0)
	r.fail("rival", "kill -9", errors.New("the program has ended\nlog"))

	text := r.markdown(options{})
	at := 0
	for _, want := range []string{
		"| drain: events/s | – | 9000 | **6000** (5000 to 7000) | 5500 |\n",
		"| drain: rows lost | – | – | 0 | 0 |\n", // beside its measurement, and a draw
		"| steady: p99, ms | – | – | 4.20 | **3** |\n",
		"Failed: rival, kill -9: the program has ended\n",
	} {
		i := strings.Index(text[at:], want)
		if i < 0 {
			t.Fatalf("no %q behind the first %d bytes of\n%s", want, at, text)
		}
		at += i
	}
}

func peerOf(name string) peer { return peer{name: name} }
