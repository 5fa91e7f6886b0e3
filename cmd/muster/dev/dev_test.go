package dev

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const any0 = "127.0.0.1:0"

func config(dir string, gateways int) Config {
	cfg := Config{
		DataDir: dir, AdminAddr: any0, XDSAddr: any0, EchoAddr: any0, Version: "test",
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	for range gateways {
		cfg.Gateways = append(cfg.Gateways, GatewayAddrs{HTTP: any0, HTTPS: any0, Status: any0})
	}
	return cfg
}

// running starts cfg and returns where everything is, and how to stop it; stop
// fails the test unless Run returns nil in time.
func running(t *testing.T, cfg Config) (Info, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready := make(chan Info, 1)
	done := make(chan error, 1)
	cfg.Ready = func(i Info) { ready <- i }
	go func() { done <- Run(ctx, cfg) }()
	stop := func() {
		t.Helper()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.NewTimer(20 * time.Second).C:
			t.Fatal("Run does not return")
		}
	}
	select {
	case i := <-ready:
		return i, stop
	case err := <-done:
		cancel()
		t.Fatalf("Run: %v", err)
	}
	return Info{}, nil // not reached
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestOneCommandGivesARequestThatGoesThroughEveryGateway(t *testing.T) {
	info, stop := running(t, config(t.TempDir(), 2))
	defer stop()
	if !info.GroupIsNew || info.Behind || len(info.Gateways) != 2 {
		t.Fatalf("info %+v", info)
	}
	for _, g := range info.Gateways {
		code, body := get(t, "http://"+g.HTTP+"/echo/hello?x=1")
		var answer struct{ Upstream, Path string }
		if err := json.Unmarshal([]byte(body), &answer); err != nil || code != http.StatusOK {
			t.Fatalf("%s: status %d, %s", g.ID, code, body)
		}
		if answer.Upstream != "echo" || answer.Path != "/echo/hello?x=1" {
			t.Errorf("%s: %+v", g.ID, answer)
		}
		if code, _ := get(t, "http://"+g.HTTP+"/nowhere"); code != http.StatusNotFound {
			t.Errorf("%s: an unknown path gives %d", g.ID, code)
		}
		if code, _ := get(t, "http://"+g.Status+"/status"); code != http.StatusOK {
			t.Errorf("%s: status page gives %d", g.ID, code)
		}
	}
}

func TestTheKeyAndTheGroupAreThereAgainAfterARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first, stop := running(t, config(dir, 0))
	a, err := dial(first.AdminAddrs[0], first.APIKey)
	if err != nil {
		t.Fatal(err)
	}
	// What the user makes of the group stays, even when it is nothing.
	_, err = a.admin.Commit(a.as(t.Context()), &musterv1.CommitRequest{Group: "default", Changes: []*musterv1.Change{
		{Action: &musterv1.Change_Delete{Delete: &musterv1.ResourceKey{Kind: musterv1.Kind_KIND_SERVICE, Id: "echo"}}},
	}})
	a.close()
	stop()
	if err != nil {
		t.Fatal(err)
	}
	if mode := fileMode(t, first.APIKeyFile); mode != 0o600 {
		t.Errorf("the key's file has mode %o", mode)
	}
	if mode := fileMode(t, dir); mode&0o077 != 0 {
		t.Errorf("the data directory has mode %o", mode)
	}

	second, stop := running(t, config(dir, 0))
	defer stop()
	if second.APIKey != first.APIKey || second.GroupIsNew {
		t.Errorf("after a restart: %+v", second)
	}
	b, err := dial(second.AdminAddrs[0], first.APIKey)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	resp, err := b.admin.GetGroup(b.as(t.Context()), &musterv1.GetGroupRequest{Group: "default"})
	if err != nil {
		t.Fatal(err)
	}
	if g := resp.GetGroup(); g.GetRevision() != 2 || g.GetResources() != 0 {
		t.Errorf("the group is at %d with %d resources", g.GetRevision(), g.GetResources())
	}
}

func fileMode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestAGivenKeyIsTheOnlyOneAndIsNotWrittenDown(t *testing.T) {
	cfg := config(t.TempDir(), 0)
	cfg.APIKey = "mst-given"
	info, stop := running(t, cfg)
	defer stop()
	for key, want := range map[string]codes.Code{"mst-given": codes.OK, "mst-other": codes.Unauthenticated} {
		a, err := dial(info.AdminAddrs[0], key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.admin.ListGroups(a.as(t.Context()), &musterv1.ListGroupsRequest{})
		a.close()
		if status.Code(err) != want {
			t.Errorf("key %q: %v", key, err)
		}
	}
	err := filepath.WalkDir(cfg.DataDir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), "mst-given") {
			t.Errorf("%s holds the key", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestATakenPortEndsEverythingWithTheReason(t *testing.T) {
	taken, err := net.Listen("tcp", any0)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, part := range []string{"admin", "xds", "echo", "gateway"} {
		cfg := config(t.TempDir(), 1)
		switch part {
		case "admin":
			cfg.AdminAddr = taken.Addr().String()
		case "xds":
			cfg.XDSAddr = taken.Addr().String()
		case "echo":
			cfg.EchoAddr = taken.Addr().String()
		case "gateway":
			cfg.Gateways[0].Status = taken.Addr().String()
		}
		cfg.Ready = func(Info) { t.Errorf("%s: ready although its port is taken", part) }
		if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("%s: %v", part, err)
		}
	}
}

func TestAnInterruptWhileStartingIsNotAFailure(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond} {
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(after, cancel)
		err := Run(ctx, config(t.TempDir(), 1))
		timer.Stop()
		cancel()
		if err != nil {
			t.Errorf("after %s: %v", after, err)
		}
	}
}

func TestEachOffsetAndEachGatewayHasPortsOfItsOwn(t *testing.T) {
	var cfg Config
	if err := cfg.Addresses(100, 3, 0, 3); err != nil {
		t.Fatal(err)
	}
	if cfg.AdminAddr != "127.0.0.1:7543" || cfg.XDSAddr != "127.0.0.1:8043" {
		t.Errorf("server at %s and %s", cfg.AdminAddr, cfg.XDSAddr)
	}
	if want := (GatewayAddrs{HTTP: "127.0.0.1:9182", HTTPS: "127.0.0.1:9545", Status: "127.0.0.1:7187"}); cfg.Gateways[2] != want {
		t.Errorf("third gateway %+v, want %+v", cfg.Gateways[2], want)
	}
	if want := (ServerAddrs{Admin: "127.0.0.1:7545", XDS: "127.0.0.1:8045", Raft: "127.0.0.1:7202"}); len(cfg.Servers) != 3 || cfg.Servers[2] != want {
		t.Errorf("servers %+v, want %+v last", cfg.Servers, want)
	}
	for _, bad := range [][3]int{{-1, 1, 1}, {0, 1, -1}, {0, 1, 101}, {56093, 1, 1}, {0, 0, 1}, {0, 10, 1}} {
		if err := cfg.Addresses(bad[0], bad[1], 0, bad[2]); err == nil {
			t.Errorf("offset %d with %d servers and %d gateways was accepted", bad[0], bad[1], bad[2])
		}
	}
}
