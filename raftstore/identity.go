package raftstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
)

// serverID returns the id that a data directory is bound to, binding a new one.
func serverID(dir, wanted string) (string, error) {
	path := filepath.Join(dir, "server-id")
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		id := strings.TrimSpace(string(data))
		if id == "" {
			return "", &CorruptError{path, "it is empty"}
		}
		if wanted != "" && wanted != id {
			return "", fmt.Errorf("the data directory %s belongs to server %q, not %q", dir, id, wanted)
		}
		return id, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("read server id: %w", err)
	}
	if wanted == "" {
		wanted = uuid.NewString()
	}
	if strings.ContainsFunc(wanted, notIDRune) {
		return "", fmt.Errorf("server id %q: only a-z, A-Z, 0-9, '-', '_' and '.' are allowed", wanted)
	}
	if err := writeFileSync(path, []byte(wanted+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep server id: %w", err)
	}
	return wanted, nil
}

func notIDRune(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
		return false
	}
	return true
}
