package gateway

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
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

// A priority with a few sick hosts keeps all of its requests as long as the factor
// makes up for them, and gives the rest away beyond that.
func TestTheOverprovisioningFactorDecidesWhatALowerPriorityGets(t *testing.T) {
	const usual = 0 // the assignment does not say: 140
	for _, test := range []struct {
		healthy, of int
		factor      uint32
		first       int // percent of the requests
	}{
		{10, 10, usual, 100}, {8, 10, usual, 100}, {7, 10, usual, 98}, {5, 10, usual, 70}, {1, 10, usual, 14}, {0, 10, usual, 0},
		{8, 10, 100, 80}, {10, 10, 100, 100}, {5, 10, 200, 100}, {4, 10, 200, 80}, {1, 10, 100000, 100},
	} {
		var first []*endpointv3.LbEndpoint
		for i := range test.of {
			e := lbEndpoint(fmt.Sprintf("127.0.0.1:%d", 1000+i), 0)
			if i >= test.healthy {
				e.HealthStatus = corev3.HealthStatus_UNHEALTHY
			}
			first = append(first, e)
		}
		assignment := weighted("c", first, []*endpointv3.LbEndpoint{lbEndpoint("127.0.0.1:1", 0)})
		policy := assignment.msg.(*endpointv3.ClusterLoadAssignment)
		if policy.Policy = nil; test.factor != usual {
			policy.Policy = &endpointv3.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(test.factor)}
		}
		l := newLab(t, res("c", clusterOf("c")), assignment, catchAll(to("/", "c")))
		c, _ := l.gw.table.Load().clusters.Get([]byte("c"))
		if load := c.set.Load().load; load[0] != test.first || load[1] != 100-test.first {
			t.Errorf("%d of %d healthy, factor %d: the priorities get %v, want %d and the rest", test.healthy, test.of, test.factor, load, test.first)
		}
	}
}

// The third failed check in a row takes a host out and the second good one brings
// it back, no earlier and no later. What a check finds is seen from the next one.
func TestAHostChangesAtTheThresholdsOfItsChecks(t *testing.T) {
	const good, bad, final = http.StatusOK, http.StatusServiceUnavailable, http.StatusNotFound
	script := []struct {
		status int
		failed bool // after it
	}{
		{good, false}, {bad, false}, {bad, false}, {good, false}, // a good one in between: they count anew
		{bad, false}, {bad, false}, {bad, true}, {bad, true},
		{good, true}, {bad, true}, {good, true}, {good, false},
		{final, true}, // not among those that may be tried again
		{good, true}, {good, false},
	}
	var seen []bool // whether the host was out when each check began
	var watched atomic.Pointer[host]
	done := make(chan struct{})
	probe := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { // one at a time
		h := watched.Load()
		switch {
		case h == nil: // the first, of a host that is good
			return
		case len(seen) > len(script):
			return
		}
		seen = append(seen, h.failed.Load())
		if len(seen) > len(script) {
			close(done)
			return
		}
		w.WriteHeader(script[len(seen)-1].status)
	}))
	t.Cleanup(probe.Close)
	check := settings(`{"healthChecks":[{"timeout":"10s","interval":"0.005s","unhealthyThreshold":3,"healthyThreshold":2,
		"httpHealthCheck":{"path":"/","retriableStatuses":[{"start":"500","end":"600"}]}}]}`)
	l := newLab(t, res("c", clusterOf("c", check)), weighted("c", []*endpointv3.LbEndpoint{checkedAt("127.0.0.1:1", probe.URL)}), catchAll(to("/", "c")))
	c, _ := l.gw.table.Load().clusters.Get([]byte("c"))
	c.mu.Lock()
	for _, h := range c.hosts {
		watched.Store(h)
	}
	c.mu.Unlock()
	<-done
	for i, step := range script {
		if seen[i+1] != step.failed {
			t.Fatalf("after check %d (%d): out is %v; all: %v", i+1, step.status, seen[i+1], seen)
		}
	}
}
