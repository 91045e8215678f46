package relaytest

import (
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Answer is what a server of another kind, or a hostile one, sends to a client. Want is a
// part of the error in which that must end.
type Answer = struct{ Sends, Want string }

// maxAllocated bounds the bytes that a client may allocate for an answer.
const maxAllocated = 8 << 20

// RefuseAnswers lets a client meet each answer. It must end in the error wanted, with
// little memory, and classify must make that error fatal. A peer that sends nothing may
// be right, so its error is not fatal.
func RefuseAnswers(t *testing.T, answers map[string]Answer, meet func(t testing.TB, sends string) error, classify func(error) error) {
	t.Helper()
	for name, a := range answers {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := meet(t, a.Sends)
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), a.Want) {
				t.Errorf("error %v, want one with %q", err, a.Want)
			}
			if a.Sends != "" && !relay.IsFatal(classify(err)) {
				t.Errorf("error %v is not fatal", err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > maxAllocated {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
}

// Serve starts a server on loopback and returns its address. Each connection is handled by
// a goroutine of its own, and closed after it. The server ends with the test.
func Serve(t testing.TB, handle func(net.Conn)) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var handlers sync.WaitGroup
	accepting := make(chan struct{})
	t.Cleanup(func() {
		_ = ln.Close()
		<-accepting
		handlers.Wait()
	})
	go func() {
		defer close(accepting)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			handlers.Go(func() {
				defer func() { _ = conn.Close() }()
				handle(conn)
			})
		}
	}()
	return ln.Addr().String()
}
