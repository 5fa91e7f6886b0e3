package dataplane

import (
	"os"
	"syscall"
)

// syncData makes what was written to a file durable, and of the rest only what is
// needed to read it: not the times.
func syncData(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); err != syscall.EINTR {
			return err
		}
	}
}
