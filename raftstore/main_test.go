package raftstore

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("RAFTSTORE_TEST_CHILD"); dir != "" {
		os.Exit(childMain(dir))
	}
	goleak.VerifyTestMain(m)
}
