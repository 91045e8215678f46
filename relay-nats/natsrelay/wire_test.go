package natsrelay

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// The rule by which header names are refused ahead is the client's own.
func TestHeaderNamesAsTheClient(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	nc, _ := connect(t, url)
	names := []string{"", "ab", "naïve", "a b"}
	for c := range 256 {
		names = append(names, "a"+string([]byte{byte(c)}))
	}
	for _, name := range names {
		err := nc.PublishMsg(&nats.Msg{Subject: "header.names", Header: nats.Header{name: {"x"}}})
		if refused := errors.Is(err, nats.ErrBadHeaderMsg); refused == validHeaderName(name) {
			t.Errorf("validHeaderName(%q) = %t; the client says %v", name, !refused, err)
		}
	}
}
