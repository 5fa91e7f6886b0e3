package dataplane

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var writeFormat = flag.String("write-format", "", "directory to write files of this release's format to, for a new testdata/formatN")

const formatKey = "the key of the files in testdata"

// formatStates are what the files in testdata hold: of the base, and with the journal.
func formatStates(t *testing.T) (base, journal *State) {
	base = revisionOf(t, ClusterType, 3, 41, nil, "service/a=one", "service/b=two")
	return base, revisionOf(t, ClusterType, 3, 42, nil, "service/b=two", "service/c=three")
}

// A file that a release has written is read by every later one. When the format
// changes, the files of the new one go beside these: -write-format writes them.
func TestFilesOfEveryFormatAreRead(t *testing.T) {
	base, journal := formatStates(t)
	if *writeFormat != "" {
		writeFormatFiles(t, *writeFormat, base, journal)
	}
	dirs, err := filepath.Glob("testdata/format*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("%v, %v", dirs, err)
	}
	for _, dir := range dirs {
		for name, key := range map[string]string{"plain.snapshot": "", "sealed.snapshot": formatKey} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			s, err := ReadSnapshot(bytes.NewReader(b), "id-of-g", []byte(key))
			if err != nil || !sameState(s, base) {
				t.Errorf("%s/%s: %v, %v", dir, name, s, err)
			}
		}
		d := newDisk(t)
		if err := os.CopyFS(d.dir, os.DirFS(filepath.Join(dir, "disk"))); err != nil {
			t.Fatal(err)
		}
		s, ok := d.load("g", nil)
		if !ok || !sameState(s, journal) || d.log.Len() > 0 {
			t.Errorf("%s/disk: loaded %v, the log says: %s", dir, s, &d.log)
		}
	}
}

func TestTodaysFormatIsWrittenAsItWas(t *testing.T) {
	base, _ := formatStates(t)
	var b bytes.Buffer
	if err := WriteSnapshot(&b, "id-of-g", base, nil); err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/format1/plain.snapshot")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), golden) {
		t.Error("what is written differs from testdata/format1/plain.snapshot: raise cacheFormat, and keep reading that")
	}
}

func writeFormatFiles(t *testing.T, dir string, base, journal *State) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]string{"plain.snapshot": "", "sealed.snapshot": formatKey} {
		if _, err := writeAtomically(filepath.Join(dir, name), func(w io.Writer) (int, error) {
			return 0, WriteSnapshot(w, "id-of-g", base, []byte(key))
		}); err != nil {
			t.Fatal(err)
		}
	}
	d := &disk{T: t, dir: filepath.Join(dir, "disk")}
	c := d.open("g", nil)
	defer d.shut(c)
	empty := emptyState()
	for _, step := range []struct{ before, after *State }{{empty, base}, {base, journal}} {
		cfg := Config{TypeURLs: []string{ClusterType}}
		s := newSession(&cfg, step.before, version{}, false)
		s.received, s.touched = step.after, touchedBy(step.after)
		s.touchAll()
		if w := c.write(step.before, step.after, s.update("g")); w.Err != nil {
			t.Fatal(w.Err)
		}
	}
}

func TestAFormatThatThisProgramCannotReadIsRefusedWithAClearReason(t *testing.T) {
	file := func(header map[string]any) []byte {
		h, err := json.Marshal(header)
		if err != nil {
			t.Fatal(err)
		}
		end, err := json.Marshal(cacheEnd{})
		if err != nil {
			t.Fatal(err)
		}
		b := []byte(cacheMagic)
		for i, payload := range [][]byte{h, end} {
			b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
			b = append(b, payload...)
			sum := frameSum(uint64(i), payload)
			b = append(b, sum[:]...)
		}
		return b
	}
	for _, test := range []struct {
		format, requires int
		ok               bool
	}{
		{1, 0, true}, {1, 1, true},
		{2, 1, true}, {9, 1, true}, // written by a later release, for this one too
		{2, 0, false}, {2, 2, false}, {0, 0, false}, {-1, 1, false},
	} {
		header := map[string]any{"format": test.format, "kind": "base", "group": "g", "a_later_field": "ignored"}
		if test.requires != 0 {
			header["requires"] = test.requires
		}
		_, err := ReadSnapshot(bytes.NewReader(file(header)), "g", nil)
		if test.ok != (err == nil) || !test.ok && (!errors.Is(err, errCacheFormat) || !strings.Contains(err.Error(), "this program reads 1 to 1")) {
			t.Errorf("format %d that needs %d: %v", test.format, test.requires, err)
		}
	}
}
