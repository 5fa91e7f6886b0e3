package upstream

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, cfg Config) *Backend {
	t.Helper()
	b, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func get(t *testing.T, b *Backend, path string) (*http.Response, string, error) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + b.Addr() + path)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

func TestBackendEchoesTheRequestAsItArrived(t *testing.T) {
	b := start(t, Config{Name: "a"})
	resp, body, err := get(t, b, "/x%2Fy?q=1")
	if err != nil {
		t.Fatal(err)
	}
	var echo Echo
	if err := json.Unmarshal([]byte(body), &echo); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || echo.From != "a" || echo.Path != "/x%2Fy?q=1" || echo.Host != b.Addr() {
		t.Errorf("got %d %+v", resp.StatusCode, echo)
	}
	if b.Requests() != 1 {
		t.Errorf("counted %d requests, want 1", b.Requests())
	}
}

func TestBackendMisbehavesOnDemand(t *testing.T) {
	b := start(t, Config{Name: "a"})
	for _, step := range []struct {
		name       string
		set        Behaviour
		path       string
		status     int
		fails      bool
		atLeastFor time.Duration
	}{
		{name: "another status", set: Behaviour{Status: 503}, path: "/", status: 503},
		{name: "healthy while failing", set: Behaviour{Status: 503}, path: HealthPath, status: 200},
		{name: "unhealthy while working", set: Behaviour{Health: 500}, path: HealthPath, status: 500},
		{name: "late", set: Behaviour{Delay: 50 * time.Millisecond}, path: "/", status: 200, atLeastFor: 50 * time.Millisecond},
		{name: "dropped", set: Behaviour{Drop: true}, path: "/", fails: true},
		{name: "down", set: Behaviour{Down: true}, path: "/", fails: true},
		{name: "up again", path: "/", status: 200},
	} {
		if err := b.Set(step.set); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		resp, _, err := get(t, b, step.path)
		switch {
		case step.fails && err == nil:
			t.Errorf("%s: answered %d", step.name, resp.StatusCode)
		case !step.fails && err != nil:
			t.Errorf("%s: %v", step.name, err)
		case !step.fails && resp.StatusCode != step.status:
			t.Errorf("%s: answered %d, want %d", step.name, resp.StatusCode, step.status)
		}
		if took := time.Since(began); took < step.atLeastFor {
			t.Errorf("%s: answered after %v", step.name, took)
		}
	}
}

func TestGRPCBackendServesHealth(t *testing.T) {
	b := start(t, Config{Name: "grpc", Handler: GRPCHealth()})
	conn, err := grpc.NewClient(b.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || resp.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("got %v, %v", resp, err)
	}
}
