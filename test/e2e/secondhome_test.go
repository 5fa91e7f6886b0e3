//go:build e2e

package e2e

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/dataplane/bucket"
	"github.com/musterhq/muster/test/e2e/behaviour"
	"github.com/musterhq/muster/test/e2e/control"
)

// TestANewSiteStartsFromTheSecondHome ends every server and relay, and starts an Envoy
// with its agent, and an embedded gateway, on disks that hold nothing: what there is of
// the group is in a bucket alone, where a relay had written it.
func TestANewSiteStartsFromTheSecondHome(t *testing.T) {
	ctx := t.Context()
	backend := s3mem.New()
	if err := backend.CreateBucket("edge-config"); err != nil {
		t.Fatal(err)
	}
	s3 := httptest.NewServer(gofakes3.New(backend).Server())
	defer s3.Close()
	dir := t.TempDir()
	const key = "the key of the second home"
	for name, text := range map[string]string{"key": key, "credentials": "[default]\naws_access_key_id = id\naws_secret_access_key = secret\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flags := []string{
		"--insecure", "--second-home", "s3://edge-config/prod", "--second-home-endpoint", s3.URL,
		"--second-home-credentials-file", filepath.Join(dir, "credentials"), "--second-home-key-file", filepath.Join(dir, "key"),
	}
	at, err := bucket.New(bucket.Config{Name: "edge-config", Prefix: "prod", Endpoint: s3.URL, Insecure: true, AccessKeyID: "id", SecretAccessKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	home, err := dataplane.NewSecondHome(dataplane.SecondHomeConfig{Store: at, Key: []byte(key)})
	if err != nil {
		t.Fatal(err)
	}

	a := startBackend(t, "a")
	s := newSite(t, 0)
	rev, err := s.commit(ctx, "default", serviceOn("shop", "shop.example.com", "/shop", a), routeOf("shop", "/*"))
	if err != nil {
		t.Fatal(err)
	}
	writer := startRelay(t, func() (*control.Relay, error) {
		return control.StartRelay(muster, dir, "writer", s.XDSAddr(), flags[1:]...)
	})
	if err := eventually(ctx, 30*time.Second, func() error {
		kept, err := home.Snapshots(ctx, "default")
		if err == nil && (len(kept) == 0 || kept[0].Revision != rev) {
			err = fmt.Errorf("there is %v", kept)
		}
		return err
	}); err != nil {
		t.Fatalf("revision %d is not in the second home: %v", rev, err)
	}
	s.Kill()
	writer.Kill()

	for _, binary := range envoys {
		t.Run("an Envoy "+binary.Name()+" through its agent", func(t *testing.T) {
			began := time.Now()
			agent := startRelay(t, func() (*control.Relay, error) {
				return control.StartAgent(muster, t.TempDir(), "default", "edge-1", s.XDSAddr(), flags...)
			})
			p := s.below(agent).startEnvoy(t, "default", binary)
			if err := poll(ctx, 30*time.Second, func() error { return p.answers(ctx, "shop.example.com/shop/x", 200) }); err != nil {
				t.Fatal(err)
			}
			t.Logf("serving %v after its start", time.Since(began).Round(time.Millisecond))
		})
	}
	t.Run("the gateway alone", func(t *testing.T) {
		began := time.Now()
		g, err := s.StartGateway("default", "alone", append([]string{"--cache-dir", t.TempDir()}, flags...)...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(g.Kill)
		p := &plane{name: "gateway", gate: behaviour.Gate{HTTP: g.HTTP, HTTPS: g.HTTPS}}
		if err := poll(ctx, 30*time.Second, func() error { return p.answers(ctx, "shop.example.com/shop/x", 200) }); err != nil {
			t.Fatal(err)
		}
		t.Logf("serving %v after its start", time.Since(began).Round(time.Millisecond))
	})
}
