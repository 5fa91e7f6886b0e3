package server

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	descName = regexp.MustCompile(`fqName: "(muster_[a-z0-9_]+)", help: "((?:[^"\\]|\\.)*)"`)
	docName  = regexp.MustCompile("(?m)^\\| `(muster_[a-z0-9_]+)`")
)

func TestEveryMetricIsDocumentedAndEveryDocumentedOneIsThere(t *testing.T) {
	srv, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	there := map[string]string{}
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		srv.metrics.registry.Describe(descs)
	}()
	for d := range descs {
		if m := descName.FindStringSubmatch(d.String()); m != nil {
			there[m[1]] = m[2]
		}
	}
	doc, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range docName.FindAllSubmatch(doc, -1) {
		documented[string(m[1])] = true
	}
	for _, name := range slices.Sorted(maps.Keys(there)) {
		if !documented[name] {
			t.Errorf("docs/metrics.md lacks | `%s` | %s |", name, there[name])
		}
	}
	for name := range documented {
		if _, ok := there[name]; !ok {
			t.Errorf("docs/metrics.md tells of %s, which nobody exports", name)
		}
	}
}
