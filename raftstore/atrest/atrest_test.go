package atrest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
)

func newKeys(t *testing.T, before ...string) (*Keys, string) {
	t.Helper()
	text, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	all := string(text) + strings.Join(before, "")
	k, err := Parse([]byte(all))
	if err != nil {
		t.Fatal(err)
	}
	return k, all
}

func encrypted(t *testing.T, k *Keys, plain string) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := k.Encrypt(&out)
	if err == nil {
		_, err = io.WriteString(w, plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestTheAgeProgramsLibraryReadsWhatIsEncrypted(t *testing.T) {
	k, text := newKeys(t)
	file := encrypted(t, k, "hello")
	identities, err := age.ParseIdentities(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	r, err := age.Decrypt(bytes.NewReader(file), identities...)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := io.ReadAll(r); err != nil || string(plain) != "hello" {
		t.Errorf("%q, %v", plain, err)
	}
	if !IsStream(file) || IsStream([]byte("muster-snapshot-1\n")) {
		t.Error("it does not know what is encrypted")
	}
}

func TestAnOldKeyReadsAndTheNewOneWrites(t *testing.T) {
	old, oldText := newKeys(t)
	file := encrypted(t, old, "of before")
	both, _ := newKeys(t, oldText)
	r, err := both.Decrypt(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := io.ReadAll(r); err != nil || string(plain) != "of before" {
		t.Errorf("%q, %v", plain, err)
	}
	if size, err := both.PlainSize(bytes.NewReader(file), int64(len(file))); err != nil || size != int64(len("of before")) {
		t.Errorf("size %d, %v", size, err)
	}
	if _, err := old.Decrypt(bytes.NewReader(encrypted(t, both, "new"))); !errors.Is(err, ErrKey) {
		t.Errorf("the old key alone: %v, want ErrKey", err)
	}
}

func TestADataKeyIsEncryptedAnewForTheFirstKeyOnly(t *testing.T) {
	old, oldText := newKeys(t)
	sealer, wrapped, err := old.NewSealer()
	if err != nil {
		t.Fatal(err)
	}
	record := sealer.Seal([]byte("secret"), []byte("7"))
	if _, again, err := old.OpenSealer(wrapped); err != nil || again != nil {
		t.Fatalf("opened with the same key: %d bytes, %v", len(again), err)
	}
	both, _ := newKeys(t, oldText)
	opened, rewrapped, err := both.OpenSealer(wrapped)
	if err != nil || rewrapped == nil {
		t.Fatalf("opened with a new key before it: %d bytes, %v", len(rewrapped), err)
	}
	if plain, err := opened.Open(record, []byte("7")); err != nil || string(plain) != "secret" {
		t.Errorf("%q, %v", plain, err)
	}
	if _, _, err := old.OpenSealer(rewrapped); !errors.Is(err, ErrKey) {
		t.Errorf("the old key opens it still: %v", err)
	}
}

func TestASealedRecordIsReadInItsPlaceAndUnchangedOnly(t *testing.T) {
	k, _ := newKeys(t)
	s, _, err := k.NewSealer()
	if err != nil {
		t.Fatal(err)
	}
	record := s.Seal([]byte("secret"), []byte("7"))
	if bytes.Contains(record, []byte("secret")) || !Sealed(record) || len(record) != Overhead+len("secret") {
		t.Fatalf("sealed: %q", record)
	}
	if bytes.Equal(record, s.Seal([]byte("secret"), []byte("7"))) {
		t.Error("two seals are equal: the nonce is not random")
	}
	if _, err := s.Open(record, []byte("8")); err == nil {
		t.Error("it was opened in another place")
	}
	for i := range record {
		bad := bytes.Clone(record)
		bad[i] ^= 1
		if _, err := s.Open(bad, []byte("7")); err == nil {
			t.Errorf("it was opened with byte %d changed", i)
		}
		if _, err := s.Open(record[:i], []byte("7")); err == nil {
			t.Errorf("it was opened when cut to %d bytes", i)
		}
	}
}

func TestAKeyFileThatOthersCanReadIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	text, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o640: false, 0o604: false} {
		_ = os.Remove(path)
		if err := os.WriteFile(path, text, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path); (err == nil) != ok {
			t.Errorf("mode %#o: %v", mode, err)
		}
	}
}

func TestABadKeyFileIsRefusedWithoutSayingWhatIsInIt(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "AGE-SECRET-KEY-1NOTONE\n", "hunter2\n"} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		} else if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "NOTONE") {
			t.Errorf("%q: the error repeats it: %v", text, err)
		}
	}
}
