package auth

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAKeyBelongsToItsIdentity(t *testing.T) {
	keys := NewKeys(NewKey("ann", RoleAdmin, "secret-a"), NewKey("bob", RoleViewer, "secret-b"))
	for secret, want := range map[string]Identity{"secret-a": {"ann", RoleAdmin}, "secret-b": {"bob", RoleViewer}} {
		if got, ok := keys.Authenticate(secret); !ok || got != want {
			t.Errorf("Authenticate(%s) = %v, %v; want %v", secret, got, ok, want)
		}
	}
	for _, secret := range []string{"", "secret", "secret-a ", "SECRET-A"} {
		if id, ok := keys.Authenticate(secret); ok {
			t.Errorf("Authenticate(%q) = %v", secret, id)
		}
	}
	keys.Replace([]Key{NewKey("bob", RoleViewer, "secret-b")})
	if _, ok := keys.Authenticate("secret-a"); ok {
		t.Error("a removed key still works")
	}
}

func TestGeneratedKeysAreLongAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		k := GenerateKey()
		if !strings.HasPrefix(k, KeyPrefix) || len(k) < 32 || seen[k] {
			t.Fatalf("GenerateKey = %q", k)
		}
		seen[k] = true
	}
}

func TestAKeyFileHoldsNoSecretAndIsForItsOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	keys, secret, err := LoadOrCreateKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	if id, ok := keys.Authenticate(secret); !ok || id.Role != RoleAdmin {
		t.Fatalf("the new key is of %v", id)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), secret) || strings.Contains(string(data), strings.TrimPrefix(secret, KeyPrefix)) {
		t.Fatal("the file holds the secret")
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Fatalf("mode = %04o, want 0600", info.Mode().Perm())
	}
	again, none, err := LoadOrCreateKeys(path)
	if err != nil || none != "" {
		t.Fatalf("second load: secret %q, %v", none, err)
	}
	if _, ok := again.Authenticate(secret); !ok {
		t.Fatal("the key does not survive a reload")
	}
}

func TestABadKeyFileIsRefusedWithTheReason(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	for name, c := range map[string]struct {
		content, want string
		mode          os.FileMode
	}{
		"readable by others":  {`[]`, "0600", 0o604},
		"readable by a group": {`[]`, "0600", 0o640},
		"not JSON":            {`nonsense`, "invalid character", 0o600},
		"unknown field":       {`[{"name":"a","role":"admin","sha256":"` + hash + `","key":"x"}]`, "key", 0o600},
		"no name":             {`[{"role":"admin","sha256":"` + hash + `"}]`, "key 0: name is missing", 0o600},
		"unknown role":        {`[{"name":"a","role":"root","sha256":"` + hash + `"}]`, `unknown role "root"`, 0o600},
		"role none":           {`[{"name":"a","role":"none","sha256":"` + hash + `"}]`, `unknown role "none"`, 0o600},
		"a second list":       {`[] []`, "more text after the list", 0o600},
		"a long name":         {`[{"name":"` + strings.Repeat("a", 129) + `","role":"admin","sha256":"` + hash + `"}]`, "key 0: name is longer than 128 bytes", 0o600},
		"a line in a name":    {`[{"name":"a\nb","role":"admin","sha256":"` + hash + `"}]`, "control character", 0o600},
		"one key, two roles":  {`[{"name":"a","role":"viewer","sha256":"` + hash + `"},{"name":"b","role":"admin","sha256":"` + hash + `"}]`, `key 1: it is the same key as key 0, "a"`, 0o600},
		"short hash":          {`[{"name":"a","role":"admin","sha256":"abcd"}]`, "64 hexadecimal digits", 0o600},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys.json")
			if err := os.WriteFile(path, []byte(c.content), c.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadKeys(path); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("err = %v, want one with %q", err, c.want)
			}
		})
	}
	if _, err := ReadKeys(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("err = %v, want ErrNotExist", err)
	}
}

func TestRolesAreOrdered(t *testing.T) {
	perms := []Permission{PermissionDenied, PermissionPublic, PermissionRead, PermissionWrite, PermissionOperate}
	for role, want := range map[Role][]bool{
		RoleNone:   {false, true, false, false, false},
		RoleViewer: {false, true, true, false, false},
		RoleEditor: {false, true, true, true, false},
		RoleAdmin:  {false, true, true, true, true},
	} {
		for i, p := range perms {
			if got := role.Allows(p); got != want[i] {
				t.Errorf("%s.Allows(%d) = %v, want %v", role, p, got, want[i])
			}
		}
	}
}

func TestPlaintextIsForLoopbackOnly(t *testing.T) {
	tcp := func(s string) net.Addr {
		a, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for addr, ok := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "127.9.9.9:1": true, "0.0.0.0:1": false, "[::]:1": false, "192.0.2.1:1": false} {
		if err := CheckListen(tcp(addr), false); (err == nil) != ok || err != nil && !errors.Is(err, ErrPlaintext) {
			t.Errorf("CheckListen(%s) = %v, want ok %v", addr, err, ok)
		}
		if err := CheckListen(tcp(addr), true); err != nil {
			t.Errorf("CheckListen(%s, encrypted) = %v", addr, err)
		}
	}
}

func TestKeysAreFollowedWithoutARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	write := func(keys ...Key) {
		t.Helper()
		if err := WriteKeys(path, keys); err != nil {
			t.Fatal(err)
		}
	}
	write(NewKey("ann", RoleAdmin, "first"))
	list, err := ReadKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	keys := NewKeys(list...)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- keys.Follow(ctx, path, time.Millisecond, slog.New(slog.DiscardHandler)) }()
	works := func(secret string) bool { _, ok := keys.Authenticate(secret); return ok }
	write(NewKey("bob", RoleViewer, "second"), NewKey("cy", RoleViewer, "third"))
	for deadline := time.Now().Add(10 * time.Second); !works("second") || works("first"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the new keys were never taken")
		}
	}
	for _, bad := range []string{"garbage, and longer than what was there before", "[]"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		if !works("second") {
			t.Fatalf("%q took the keys away", bad)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
