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
	if spec := os.Getenv("RAFTSTORE_TEST_NODE"); spec != "" {
		os.Exit(nodeMain(spec))
	}
	goleak.VerifyTestMain(m)
}
