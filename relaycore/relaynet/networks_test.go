package relaynet_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

func TestNetworks(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		list, network, address string
		permitted              bool
	}{
		{"10.0.0.0/8", "tcp4", "10.1.2.3:1", true},
		{"10.0.0.0/8", "tcp4", "8.8.8.8:1", true},
		{"10.0.0.0/8", "tcp6", "[2606:4700::1111]:1", true},
		{"10.0.0.0/8", "tcp4", "11.0.0.1:1", true}, // public
		{"10.0.0.0/8", "tcp4", "127.0.0.1:1", false},
		{"10.0.0.0/8", "tcp4", "0.0.0.0:1", false},
		{"10.0.0.0/8", "tcp4", "169.254.169.254:1", false},
		{"10.0.0.0/8", "tcp6", "[::1]:1", false},
		{"10.0.0.0/8", "tcp6", "[::ffff:10.1.2.3]:1", true},
		{"10.0.0.0/8", "tcp6", "[64:ff9b::a01:203]:1", true}, // NAT64 of 10.1.2.3
		{"10.0.0.0/8", "tcp6", "[64:ff9b::7f00:1]:1", false}, // of 127.0.0.1
		{"10.0.0.0/8", "unix", "/run/socket", false},
		{"10.0.0.0/8", "unix", "@abstract", false},
		{"127.0.0.1", "unix", "/run/socket", true},
		{"127.0.0.1", "tcp4", "127.0.0.1:1", true},
		{"127.0.0.1", "tcp4", "127.0.0.2:1", false},
		{" 192.168.1.7/24 , fd00::/8", "tcp4", "192.168.1.9:1", true}, // the host's bits do not count
		{"192.168.1.0/24, fd00::/8", "tcp4", "192.168.2.9:1", false},
		{"192.168.1.0/24, fd00::/8", "tcp6", "[fd12::1%eth0]:1", true},
		{"192.168.1.0/24, fd00::/8", "tcp6", "[fe80::1%eth0]:1", false},
		{"none", "tcp4", "8.8.8.8:1", true},
		{"none", "tcp4", "127.0.0.1:1", false},
		{"none", "unix", "/run/socket", false},
	} {
		control, err := relaynet.Networks(tc.list)
		if err != nil {
			t.Fatal(err)
		}
		err = control(tc.network, tc.address, nil)
		if tc.permitted && err != nil || !tc.permitted && (!relay.IsFatal(err) || !strings.Contains(err.Error(), "--allow-private")) {
			t.Errorf("%q for %s %s: %v; want permitted: %t", tc.list, tc.network, tc.address, err, tc.permitted)
		}
	}

	if control, err := relaynet.Networks(""); control != nil || err != nil {
		t.Errorf("without a list: %t, %v; want no control", control != nil, err)
	}
	for _, bad := range []string{"10.0.0.0/33", "localhost", "10.0.0.0/8,", "none,10.0.0.0/8", "fe80::1%eth0", " ", "10.0.0.1:80"} {
		if _, err := relaynet.Networks(bad); err == nil || !strings.Contains(err.Error(), "10.0.0.0/8") {
			t.Errorf("Networks(%q) = %v, want an error with an example", bad, err)
		}
	}
}

func TestPublic(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"93.184.216.34": true, "8.8.8.8": true, "2606:4700::1111": true, "2a00:1450:4001::1": true, "::ffff:8.8.8.8": true, "64:ff9b::808:808": true,
		"127.0.0.1": false, "127.9.9.9": false, "0.0.0.0": false, "0.1.2.3": false, "10.1.2.3": false, "172.16.0.1": false, "172.31.255.255": false,
		"192.168.0.1": false, "169.254.169.254": false, "100.64.0.1": false, "224.0.0.1": false, "240.0.0.1": false, "255.255.255.255": false,
		"192.0.0.8": false, "192.0.2.1": false, "198.18.0.1": false, "198.51.100.1": false, "203.0.113.1": false,
		"::": false, "::1": false, "fe80::1": false, "fe80::1%eth0": false, "fc00::1": false, "fd12::1": false, "ff02::1": false, "fec0::1": false, "2001:db8::1": false,
		"::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "::ffff:169.254.169.254": false, "::127.0.0.1": false, "::10.0.0.1": false,
		"64:ff9b::7f00:1": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b:1::1": false, "2002:7f00:1::": false, "2002:a00:1::1": false, "2001::1": false, "100::1": false, "4000::1": false,
	} {
		if got := relaynet.Public(netip.MustParseAddr(text)); got != want {
			t.Errorf("Public(%s) = %t, want %t", text, got, want)
		}
	}
}
