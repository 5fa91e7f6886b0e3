//go:build unix

package dataplane

import (
	"os"
	"syscall"
)

// lockFile takes the exclusive lock of a file; it is given back when the file is
// closed or the process ends.
func lockFile(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
