package bucket

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"go.uber.org/goleak"

	"github.com/musterhq/muster/dataplane"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const canary = "canary-SECRET-0123456789"

// s3 is an S3 server that others wrote, with the bucket "edge". It notes how
// requests were signed.
type s3 struct {
	*httptest.Server
	mu     sync.Mutex
	signed []string // the access keys of the requests
	deny   bool
	hang   bool
}

func newS3(t *testing.T) *s3 {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket("edge"); err != nil {
		t.Fatal(err)
	}
	s := &s3{}
	fake := gofakes3.New(backend).Server()
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, credential, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
		id, _, _ := strings.Cut(credential, "/")
		s.mu.Lock()
		s.signed = append(s.signed, id)
		deny, hang := s.deny, s.hang
		s.mu.Unlock()
		switch {
		case hang:
			<-r.Context().Done()
		case deny:
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte("<Error><Code>AccessDenied</Code><Message>not for you</Message></Error>"))
		default:
			fake.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *s3) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return pool
}

func (s *s3) bucket(t *testing.T, change ...func(*Config)) *Bucket {
	t.Helper()
	cfg := Config{
		Name: "edge", Prefix: "/muster/prod/", Endpoint: s.URL, RootCAs: s.roots(), Retries: 1,
		AccessKeyID: "AKIDTEST", SecretAccessKey: canary,
	}
	for _, f := range change {
		f(&cfg)
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func TestObjectsAreWrittenReadListedAndRemoved(t *testing.T) {
	s := newS3(t)
	b := s.bucket(t)
	ctx := t.Context()
	if _, err := b.Get(ctx, "groups/g/1"); !errors.Is(err, dataplane.ErrNoObject) {
		t.Errorf("what is not there: %v", err)
	}
	large := bytes.Repeat([]byte("0123456789abcdef"), 20<<16) // more than goes up in one piece
	contents := map[string][]byte{"groups/g/1": []byte("one"), "groups/g/2": large, "groups/gg/1": []byte("other"), "names/a%2Fb": []byte("x")}
	for name, c := range contents {
		if err := b.Put(ctx, name, c); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range contents {
		if got, err := b.Get(ctx, name); err != nil || !bytes.Equal(got, c) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	list := func(prefix string) string {
		all, err := b.List(ctx, prefix)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, o := range all {
			if o.Size != int64(len(contents[o.Name])) || time.Since(o.Modified) > time.Hour {
				t.Errorf("%+v", o)
			}
			names = append(names, o.Name)
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	if got := list("groups/g/"); got != "groups/g/1 groups/g/2" {
		t.Errorf("listed: %s", got)
	}
	for range 2 { // the second time it is not there
		if err := b.Delete(ctx, "groups/g/1"); err != nil {
			t.Error(err)
		}
	}
	if got := list("groups/g/"); got != "groups/g/2" {
		t.Errorf("listed: %s", got)
	}
	other := s.bucket(t, func(c *Config) { c.Prefix = "muster" })
	if all, err := other.List(ctx, "groups/"); err != nil || len(all) != 0 {
		t.Errorf("below another prefix: %v, %v", all, err)
	}
}

func TestAnEmptyBucketHoldsNoSnapshots(t *testing.T) {
	home, err := dataplane.NewSecondHome(dataplane.SecondHomeConfig{Store: newS3(t).bucket(t)})
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := home.Snapshots(t.Context(), "g"); err != nil || len(kept) != 0 {
		t.Errorf("in an empty bucket: %v, %v", kept, err)
	}
}

func TestOnlyTLSUnlessOnLoopbackAndMeant(t *testing.T) {
	for endpoint, insecure := range map[string]bool{
		"http://127.0.0.1:9000": false, "http://s3.example.com": true, "http://10.0.0.1:9000": true, "ftp://127.0.0.1": true,
		"127.0.0.1:9000": true, "https://s3.example.com/path": false, "https://key:secret@s3.example.com": false,
	} {
		if _, err := New(Config{Name: "b", Endpoint: endpoint, Insecure: insecure, AccessKeyID: "a", SecretAccessKey: "b"}); err == nil {
			t.Errorf("%s with insecure %v is taken", endpoint, insecure)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error holds what is secret: %v", err)
		}
	}
	for endpoint, insecure := range map[string]bool{"": false, "https://127.0.0.1:9000": false, "http://127.0.0.1:9000": true, "http://[::1]:9000": true, "http://localhost:9000": true} {
		b, err := New(Config{Name: "b", Endpoint: endpoint, Insecure: insecure, AccessKeyID: "a", SecretAccessKey: "b"})
		if err != nil {
			t.Errorf("%q: %v", endpoint, err)
			continue
		}
		b.Close()
	}
	s := newS3(t)
	b := s.bucket(t, func(c *Config) { c.RootCAs = x509.NewCertPool() })
	if err := b.Put(t.Context(), "x", nil); err == nil {
		t.Error("a certificate of nobody's is trusted")
	}
}

func TestCredentialsComeFromAFileThatMayChange(t *testing.T) {
	s := newS3(t)
	file := filepath.Join(t.TempDir(), "credentials")
	write := func(id string) {
		t.Helper()
		text := "[default]\naws_access_key_id = other\naws_secret_access_key = x\n[muster]\naws_access_key_id = " + id + "\naws_secret_access_key = " + canary + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("AKID1")
	cfg := Config{CredentialsFile: file, Profile: "muster"}
	provider, err := cfg.credentials()
	if err != nil {
		t.Fatal(err)
	}
	write("AKID2")
	if v, err := provider.GetWithContext(nil); err != nil || v.AccessKeyID != "AKID2" {
		t.Errorf("%s, %v", v.AccessKeyID, err)
	}
	write("AKID3")
	provider.Expire()
	if v, err := provider.GetWithContext(nil); err != nil || v.AccessKeyID != "AKID3" || v.SecretAccessKey != canary {
		t.Errorf("%s, %v", v.AccessKeyID, err)
	}
	b := s.bucket(t, func(c *Config) { c.CredentialsFile, c.Profile = file, "muster" })
	if err := b.Put(t.Context(), "x", []byte("y")); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := s.signed[len(s.signed)-1]; last != "AKID3" {
		t.Errorf("signed by %q", last)
	}
	for what, cfg := range map[string]Config{
		"no credentials":  {},
		"half of them":    {AccessKeyID: "x"},
		"no file":         {CredentialsFile: file + "x"},
		"no such profile": {CredentialsFile: file, Profile: "nobody"},
	} {
		if _, err := cfg.credentials(); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestARefusalSaysWhichBucketAndNoSecret(t *testing.T) {
	s := newS3(t)
	b := s.bucket(t)
	s.mu.Lock()
	s.deny = true
	s.mu.Unlock()
	_, listErr := b.List(t.Context(), "x")
	_, getErr := b.Get(t.Context(), "x")
	for what, err := range map[string]error{"list": listErr, "get": getErr, "put": b.Put(t.Context(), "x", nil), "delete": b.Delete(t.Context(), "x")} {
		if err == nil || errors.Is(err, dataplane.ErrNoObject) || !strings.Contains(err.Error(), "bucket edge at 127.0.0.1") || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", what, err)
		}
	}
	missing := newS3(t).bucket(t, func(c *Config) { c.Name = "nobodys" })
	if _, err := missing.Get(t.Context(), "x"); err == nil || errors.Is(err, dataplane.ErrNoObject) {
		t.Errorf("of a bucket that is not there: %v", err)
	}
}

func TestABucketThatHangsIsGivenUpWithTheContext(t *testing.T) {
	s := newS3(t)
	b := s.bucket(t)
	s.mu.Lock()
	s.hang = true
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for what, call := range map[string]func() error{
		"list": func() error { _, err := b.List(ctx, "x"); return err },
		"get":  func() error { _, err := b.Get(ctx, "x"); return err },
		"put":  func() error { return b.Put(ctx, "x", []byte("y")) },
	} {
		if err := call(); err == nil {
			t.Errorf("%s succeeded", what)
		}
	}
}

func TestTheWhereaboutsAreReadFromAURL(t *testing.T) {
	for text, want := range map[string][2]string{"s3://b": {"b", ""}, "s3://b/": {"b", ""}, "s3://b/p/q/": {"b", "p/q"}} {
		if name, prefix, err := Parse(text); err != nil || name != want[0] || prefix != want[1] {
			t.Errorf("%s: %s %s %v", text, name, prefix, err)
		}
	}
	for _, text := range []string{"", "b/p", "http://b/p", "s3:///p", "s3://b?x=y", "s3://key@b/p"} {
		if _, _, err := Parse(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
