package relay

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestEveryMetricOfARelayIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/relay.md")
	if err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		newMetrics().registry.Describe(descs)
	}()
	name := regexp.MustCompile(`fqName: "(muster_relay_[a-z_]+)"`)
	there := 0
	for d := range descs {
		if m := name.FindStringSubmatch(d.String()); m != nil {
			there++
			if !strings.Contains(string(doc), "| `"+m[1]+"` |") {
				t.Errorf("docs/relay.md lacks %s", m[1])
			}
		}
	}
	if n := strings.Count(string(doc), "| `muster_relay_"); n != there {
		t.Errorf("docs/relay.md tells of %d metrics, a relay has %d", n, there)
	}
}
