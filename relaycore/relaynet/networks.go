package relaynet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"code.dny.dev/ssrf"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Control refuses an address before it is connected. It is [net.Dialer]'s.
type Control = func(network, address string, c syscall.RawConn) error

// Networks returns a Control that permits public addresses and the networks of list. The
// networks are separated by commas; an address stands for itself, and "none" for no
// network. A Unix socket counts as 127.0.0.1. The Control is nil if list is "". Its error
// is fatal to a pipeline, and names --allow-private.
func Networks(list string) (Control, error) {
	var fields []string
	switch list {
	case "":
		return nil, nil
	case "none":
	default:
		fields = strings.Split(list, ",")
	}
	var permitted []netip.Prefix
	for _, field := range fields {
		field = strings.TrimSpace(field)
		network, err := netip.ParsePrefix(field)
		if addr, notAddress := netip.ParseAddr(field); notAddress == nil && addr.Zone() == "" {
			network, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is no network; wants 10.0.0.0/8, an address, or none", field)
		}
		permitted = append(permitted, network.Masked())
	}

	return limit(permitted, "%s is a private address that is not permitted; start the relay with --allow-private %[1]s"), nil
}

// PublicOnly returns a Control that permits public addresses. Its error is fatal, and ends
// with the cure.
func PublicOnly(cure string) Control {
	return limit(nil, "%s is not a public address; "+cure)
}

// limit permits public addresses and those networks. The text of its error has a verb for
// the address.
func limit(permitted []netip.Prefix, text string) Control {
	return func(network, address string, _ syscall.RawConn) error {
		addr := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if !strings.HasPrefix(network, "unix") {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return relay.Fatal(fmt.Errorf("dial %s: %w", address, err))
			}
			addr = plain(to.Addr())
		}
		if Public(addr) || slices.ContainsFunc(permitted, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return nil
		}
		return relay.Fatal(fmt.Errorf(text, addr))
	}
}

// guardian refuses every address in IANA's special-purpose registries.
var guardian = ssrf.New(ssrf.WithAnyPort())

// Public reports whether addr is an address of the open Internet. An IPv4 address
// inside a mapped or a NAT64 address is checked as the IPv4 address.
func Public(addr netip.Addr) bool { return guardian.SafeAddr(plain(addr)) == nil }

// plain returns the IPv4 address inside a mapped or a NAT64 address, or addr without zone.
func plain(addr netip.Addr) netip.Addr {
	addr = addr.WithZone("").Unmap()
	if ssrf.IPv6NAT64Prefix.Contains(addr) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	return addr
}
