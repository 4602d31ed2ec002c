package eventrelay_test

import (
	"os"
	"testing"
)

// TestMain keeps the tests' files in memory where it can. A process that is killed loses nothing that the kernel has, and no test here cuts
// the power; waiting for a disk would only make them slow.
func TestMain(m *testing.M) {
	if os.Getenv(childOf) != "" || os.Getenv(onSmallDisk) != "" { // it has its parent's, and may not live to remove one
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("/dev/shm", "groupcast-relay-")
	if err == nil {
		err = os.Setenv("TMPDIR", dir)
	}
	code := m.Run()
	if err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}
