//go:build failpoints

package failpoint

import (
	"os"
	"path/filepath"
)

// Dir is the environment variable that names a directory. A file in it that has
// the name of a failpoint arms that failpoint, once.
const Dir = "MUSTER_FAILPOINTS"

// Hit panics when the failpoint is armed.
func Hit(name string) {
	dir := os.Getenv(Dir)
	if dir == "" {
		return
	}
	if os.Remove(filepath.Join(dir, name)) == nil {
		panic("failpoint " + name) // vet:allow that is what it is for
	}
}
