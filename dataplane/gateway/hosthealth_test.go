package gateway

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
)

func TestAHostIsNotJudgedByAChecksThatIsGone(t *testing.T) {
	u := echoes(t, 2)
	sick := &atomic.Bool{}
	sick.Store(true)
	l := newLab(t, res("c", clusterOf("c", settings(`{`+sickCheck+`}`))),
		weighted("c", []*endpointv3.LbEndpoint{checkedAt(u[0], probeServer(t, sick)), lbEndpoint(u[1], 0)}), catchAll(to("/", "c")))
	eventually(t, "the sick one is left alone", func() bool { return l.shares(4, "/")["a"] == 0 })
	l.apply(res("c", clusterOf("c")))
	if got := l.shares(4, "/"); got["a"] != 2 {
		t.Errorf("without the check: %v", got)
	}
}

func TestAnEjectedHostComesBackAlsoWhenItsClusterChanges(t *testing.T) {
	u := echoes(t, 2)
	outlier := `"outlierDetection":{"consecutive5xx":1,"interval":"0.05s","baseEjectionTime":"0.5s","maxEjectionPercent":100,"enforcingSuccessRate":0}`
	l := newLab(t, res("c", clusterOf("c", settings(`{`+outlier+`}`))), assignmentOf("c", u...), catchAll(to("/", "c")))
	eject := func() {
		t.Helper()
		l.do("GET", "/", header("x-answer", "500"))
		if got := l.shares(4, "/"); len(got) != 1 {
			t.Fatalf("nothing was ejected: %v", got)
		}
	}
	eject()
	l.apply(res("c", clusterOf("c", settings(`{`+outlier+`}`), options(`{"commonHttpProtocolOptions":{"idleTimeout":"30s"}}`))))
	if got := l.shares(4, "/"); len(got) != 1 {
		t.Errorf("right after another change: %v", got)
	}
	eventually(t, "it is back", func() bool { return len(l.shares(4, "/")) == 2 })
	eject()
	l.apply(res("c", clusterOf("c")))
	if got := l.shares(4, "/"); len(got) != 2 {
		t.Errorf("without outlier detection: %v", got)
	}
}

func TestANewHostIsNotUsedBeforeItPassedItsCheck(t *testing.T) {
	u := echoes(t, 2)
	release := make(chan struct{})
	probe := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(probe.Close)
	l := newLab(t, res("c", clusterOf("c", settings(`{`+strings.Replace(sickCheck, `"1s"`, `"10s"`, 1)+`}`))), assignmentOf("c", u[1]), catchAll(to("/", "c")))
	l.apply(weighted("c", []*endpointv3.LbEndpoint{checkedAt(u[0], probe.URL), lbEndpoint(u[1], 0)}))
	if got := l.shares(10, "/"); got["b"] != 10 {
		t.Errorf("before the check: %v", got)
	}
	close(release)
	eventually(t, "it is used", func() bool { return l.shares(4, "/")["a"] == 2 })
}
