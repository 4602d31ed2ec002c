package ebpf_test

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// bpfFS makes a BPF file system that is mounted nowhere and goes with the test, and gives its path.
func bpfFS(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("/proc/self/fd/%d", mountBPF(t))
}

func mountBPF(t *testing.T) int {
	t.Helper()
	config, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err == nil {
		err = unix.FsconfigCreate(config)
	}
	var fd int
	if err == nil {
		fd, err = unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, 0)
	}
	if err != nil {
		t.Fatalf("make a BPF file system: %v", err)
	}
	_ = unix.Close(config)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}
