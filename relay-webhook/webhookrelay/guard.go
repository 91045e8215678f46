package webhookrelay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// errNotPublic is wrapped by the error of a dial that the guard has refused.
var errNotPublic = errors.New("is not a public address; set webhook_allow_private to true if this is meant")

// notPublic lists what netip's own predicates leave out: the special-purpose
// registries of IANA.
//
//nolint:gochecknoglobals // a constant
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"), // with IPv4 inside, long deprecated
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001::/23"), // Teredo and other protocol assignments
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("3fff::/20"),
	netip.MustParsePrefix("5f00::/16"),
	netip.MustParsePrefix("fec0::/10"),
}

//nolint:gochecknoglobals // constants
var (
	nat64   = netip.MustParsePrefix("64:ff9b::/96")
	sixto4  = netip.MustParsePrefix("2002::/16")
	publics = netip.MustParsePrefix("2000::/3")
)

// public reports whether addr is one of the open Internet, also when it wraps an
// IPv4 address.
func public(addr netip.Addr) bool {
	addr = addr.WithZone("").Unmap()
	if !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(addr) {
			return false
		}
	}
	b := addr.As16()
	switch {
	case nat64.Contains(addr):
		return public(netip.AddrFrom4([4]byte(b[12:16])))
	case sixto4.Contains(addr):
		return public(netip.AddrFrom4([4]byte(b[2:6])))
	}
	return addr.Is4() || publics.Contains(addr)
}

// guard is a [net.Dialer] Control. It sees the address that is about to be
// dialled, after the name has been resolved, for every connection: also for that
// to which a redirect leads, or a name that has changed its mind.
func guard(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return relay.Fatal(fmt.Errorf("dial %s: %w", address, err))
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return relay.Fatal(fmt.Errorf("dial %s: %w", address, err))
	}
	if !public(addr) {
		return relay.Fatal(fmt.Errorf("%s %w", addr, errNotPublic))
	}
	return nil
}
