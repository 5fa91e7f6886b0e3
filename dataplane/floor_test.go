package dataplane

import (
	"os"
	"testing"
)

func TestTheFloorIsOverwrittenInItsPlace(t *testing.T) {
	d := newDisk(t)
	c := d.open("g", nil)
	var first os.FileInfo
	for _, v := range []version{{1, 9}, {1, 10}, {1<<64 - 1, 1<<64 - 1}} {
		if err := c.writeFloor(v.Epoch, v.Revision); err != nil {
			t.Fatal(err)
		}
		now, err := os.Stat(c.path("floor"))
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = now
		}
		if !os.SameFile(first, now) || now.Size() != floorLen {
			t.Errorf("version %v: the file is another, or of %d bytes", v, now.Size())
		}
		b, err := os.ReadFile(c.path("floor"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseFloor(b); err != nil || got != v {
			t.Errorf("version %v is read as %v: %v", v, got, err)
		}
	}
	d.shut(c)
	// A process replaces the file once: it may be of a release that wrote another length.
	c = d.open("g", nil)
	defer d.shut(c)
	c.floor = version{}
	if err := c.writeFloor(2, 1); err != nil {
		t.Fatal(err)
	}
	if now, err := os.Stat(c.path("floor")); err != nil || os.SameFile(first, now) {
		t.Errorf("the file of another process is overwritten: %v", err)
	}
}
