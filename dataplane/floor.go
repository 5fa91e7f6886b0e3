package dataplane

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// floorLen is the length of the floor on disk, in bytes: less than a sector, which a
// disk writes as a whole or not at all, so that it can be overwritten in its place.
const floorLen = 128

// floorFile is the floor on disk. One without a sum is of an earlier release.
type floorFile struct {
	version
	Sum string `json:"sum,omitempty"`
}

func (v version) sum() string {
	h := sha256.Sum256(fmt.Appendf(nil, "floor %d.%d", v.Epoch, v.Revision))
	return hex.EncodeToString(h[:8])
}

func (c *cache) readFloor() {
	b, err := os.ReadFile(c.path("floor"))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		c.floor, err = parseFloor(b)
	}
	if err != nil {
		c.floorLost = true
		c.log.Error("cache floor refused", "file", c.path("floor"), "reason", err)
	}
}

// parseFloor reads a floor. A damaged one must not pass for a higher one, which no
// server would ever reach.
func parseFloor(b []byte) (version, error) {
	var f floorFile
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return version{}, err
	}
	if f.Sum != "" && f.Sum != f.sum() {
		return version{}, errChecksum
	}
	return f.version, nil
}

// writeFloor makes a version the floor, durably. The first of a process replaces the
// file; from then on it is overwritten, which saves a disk all that a new file takes.
func (c *cache) writeFloor(epoch, revision uint64) error {
	next := version{Epoch: epoch, Revision: revision}
	if !c.floor.below(next) {
		return nil
	}
	b, err := json.Marshal(floorFile{next, next.sum()})
	if err != nil {
		return err
	}
	b = append(b, bytes.Repeat([]byte(" "), max(0, floorLen-1-len(b)))...)
	b = append(b, '\n')
	if c.floorSlot == nil {
		err = c.replaceFloor(b)
	} else if _, err = c.floorSlot.WriteAt(b, 0); err == nil {
		err = syncData(c.floorSlot)
	}
	if err != nil {
		c.closeFloor()
		return err
	}
	c.floor = next
	return nil
}

func (c *cache) replaceFloor(b []byte) error {
	if _, err := writeAtomically(c.path("floor"), func(w io.Writer) (int, error) { return w.Write(b) }); err != nil {
		return err
	}
	var err error
	c.floorSlot, err = os.OpenFile(c.path("floor"), os.O_WRONLY, 0)
	return err
}

// closeFloor makes the next floor replace the file.
func (c *cache) closeFloor() {
	if c.floorSlot != nil {
		_ = c.floorSlot.Close() // what was written was synced
		c.floorSlot = nil
	}
}
