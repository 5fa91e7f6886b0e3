package dev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/musterhq/muster/server/auth"
)

// apiKey returns the kept API key and its file, made when there is none.
func apiKey(dir string) (key, file string, err error) {
	file = filepath.Join(dir, "api-key")
	data, err := os.ReadFile(file)
	if err == nil {
		if key = strings.TrimSpace(string(data)); key == "" {
			return "", "", fmt.Errorf("%s is empty: remove it to get a new key", file)
		}
		return key, file, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("read the API key: %w", err)
	}
	key = auth.GenerateKey()
	// Written beside and renamed: a crash must not leave half a key behind.
	tmp, err := os.CreateTemp(dir, ".api-key-*") // mode 0600
	if err != nil {
		return "", "", fmt.Errorf("keep the API key: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(key + "\n")
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return "", "", fmt.Errorf("keep the API key: %w", err)
	}
	return key, file, nil
}
