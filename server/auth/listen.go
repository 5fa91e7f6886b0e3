package auth

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// ErrPlaintext says that a listener without TLS was asked for beyond loopback.
var ErrPlaintext = errors.New("plaintext is allowed on loopback addresses only; configure TLS")

// CheckListen refuses to listen in plaintext on an address that other machines
// can reach.
func CheckListen(addr net.Addr, encrypted bool) error {
	if encrypted {
		return nil
	}
	switch addr.Network() {
	case "unix", "bufconn":
		return nil
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil || !ap.Addr().IsLoopback() {
		return fmt.Errorf("listen on %s: %w", addr, ErrPlaintext)
	}
	return nil
}
