package netlab

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// BPFFS makes a BPF file system for programs and maps that outlive a process, and gives a path that other processes may use too. It is mounted
// nowhere and goes away with the test, even after kill -9.
func BPFFS(t testing.TB) string {
	t.Helper()
	Require(t)
	fd, err := openBPFFS()
	if err != nil {
		t.Fatalf("make a BPF file system: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
}

func openBPFFS() (int, error) {
	config, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(config); err != nil {
		return -1, errors.Join(err, unix.Close(config))
	}
	fd, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, 0)
	return fd, errors.Join(err, unix.Close(config))
}
