package load

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/musterhq/muster/test/e2e/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLoadTellsEveryWrongAnswer(t *testing.T) {
	b, err := upstream.Start(upstream.Config{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	l := Start(t.Context(), 5*time.Millisecond, Request{Name: "one", Addr: b.Addr(), Host: "x.test", Path: "/"})
	time.Sleep(100 * time.Millisecond)
	if r := l.Report(); r.Sent == 0 || r.Failed != 0 || r.Connections != 1 {
		t.Errorf("while all is well: %+v", r)
	}
	for _, bad := range []upstream.Behaviour{{Status: 500}, {Drop: true}} {
		if err := b.Set(bad); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	r := l.Stop()
	all := strings.Join(r.Failures, "\n")
	if !strings.Contains(all, "status 500, want 200") || !strings.Contains(all, "EOF") {
		t.Errorf("a wrong status and a dropped connection: %+v", r)
	}
	if len(r.Failures) != min(r.Failed, 100) {
		t.Errorf("%d failures are described, %d were counted", len(r.Failures), r.Failed)
	}
}
