package compile_test

import (
	"slices"
	"testing"

	"github.com/musterhq/muster/server/compile"
)

// FuzzDerived gives what is derived from encoded resources whatever an operator's own
// message may hold: it is refused or changed, and never a panic; and what is changed
// can be changed again.
func FuzzDerived(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add([]byte{0x0a, 0x01, 'a', 0x1a, 0x00}, []byte{0x0a, 0x01, 'v'})
	f.Fuzz(func(t *testing.T, body, host []byte) {
		from := compile.Sources{Cluster: "muster_xds"}
		for _, typeURL := range []string{compile.ClusterType, compile.ListenerType, compile.RouteConfigurationType, compile.ExtensionConfigType, compile.SecretType} {
			out, err := compile.SourcedFrom(typeURL, body, from)
			if err != nil {
				continue
			}
			if _, err := compile.SourcedFrom(typeURL, out, from); err != nil {
				t.Fatalf("%s: what was derived cannot be read: %v", typeURL, err)
			}
		}
		if out, err := compile.ListenerFor(body, compile.ListenOptions{Address: "127.0.0.1", HTTPPort: 1}); err == nil {
			if _, err := compile.ListenerFor(out, compile.ListenOptions{HTTPPort: 2}); err != nil {
				t.Fatalf("the derived listener cannot be read: %v", err)
			}
		}
		if out, err := compile.SotWRouteConfiguration(body, slices.Values([][]byte{host})); err == nil {
			if _, err := compile.SotWRouteConfiguration(out, slices.Values([][]byte{})); err != nil {
				t.Fatalf("the derived route configuration cannot be read: %v", err)
			}
		}
	})
}
