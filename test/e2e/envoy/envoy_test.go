//go:build e2e

package envoy

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/musterhq/muster/test/e2e/ports"
)

// TestAdminReadsWhatEnvoyHolds runs each Envoy with clusters and listeners from
// files, one cluster of which it refuses.
func TestAdminReadsWhatEnvoyHolds(t *testing.T) {
	binaries, err := Binaries()
	if err != nil {
		t.Fatal(err)
	}
	for _, binary := range binaries {
		t.Run(binary.Name(), func(t *testing.T) {
			dir := t.TempDir()
			var port [2]int
			for i := range port {
				if port[i], err = ports.Free(); err != nil {
					t.Fatal(err)
				}
			}
			files := map[string]string{
				"cds.yaml": `
version_info: "7"
resources:
- {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: good, connect_timeout: 1s}
- {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: bad, connect_timeout: 1s, type: ORIGINAL_DST}
`,
				"lds.yaml": fmt.Sprintf(`
version_info: "8"
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: http
  address: {socket_address: {address: 127.0.0.1, port_value: %d}}
  filter_chains:
  - filters:
    - name: tcp
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: good}
`, port[0]),
			}
			for name, content := range files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			p, err := Start(t.Context(), Config{
				Binary: binary, Dir: dir, Admin: fmt.Sprintf("127.0.0.1:%d", port[1]),
				Bootstrap: fmt.Appendf(nil, `
node: {id: test, cluster: test}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}
dynamic_resources:
  cds_config: {path_config_source: {path: %s/cds.yaml}}
  lds_config: {path_config_source: {path: %s/lds.yaml}}
`, port[1], dir, dir),
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.Stop)
			if err := p.WaitReady(t.Context(), 10*time.Second); err != nil {
				t.Fatalf("%v\n%s", err, p.LogTail(2000))
			}
			listeners, err := p.Listeners(t.Context())
			if err != nil || listeners["http"] != fmt.Sprintf("127.0.0.1:%d", port[0]) {
				t.Errorf("listeners: %v, %v", listeners, err)
			}
			if n, err := p.Sum(t.Context(), `^cluster_manager\.cds\.update_rejected$`); err != nil || n != 1 {
				t.Errorf("%d refused updates, %v; want 1", n, err)
			}
			dump, err := p.ConfigDump(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			found := map[string]string{}
			for _, r := range dump {
				found[r.Name+" "+r.State] = r.Version
			}
			if found["http active"] != "8" {
				t.Errorf("the dump holds %v, want http in version 8", dump)
			}
			if p.Stop(); p.Running() {
				t.Error("runs after Stop")
			}
		})
	}
}
